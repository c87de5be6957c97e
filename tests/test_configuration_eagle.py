import pytest

from eagle_hf import EagleConfig


SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def test_defaults_follow_the_version():
    eagle3 = EagleConfig(**SMALL)
    assert (eagle3.input_layernorm, eagle3.feature_layer_ids, eagle3.num_features) == (True, None, 3)
    eagle1 = EagleConfig(**SMALL, eagle_version=1)
    assert (eagle1.input_layernorm, eagle1.feature_layer_ids, eagle1.num_features) == (False, [-1], 1)
    assert (eagle3.target_hidden_size, eagle3.num_key_value_heads, eagle3.head_dim) == (64, 4, 16)
    assert eagle3.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("num_layers", [3, 7, 8, 32, 80])
def test_default_features_are_the_authors(num_layers):
    expected = sorted([2, num_layers // 2, num_layers - 3])  # captured in the order of the layers
    assert EagleConfig(**SMALL).resolve_feature_layer_ids(num_layers) == expected


@pytest.mark.parametrize("num_layers", [1, 2, 4, 5, 6])
def test_targets_too_shallow_for_the_default_features_are_refused(num_layers):
    with pytest.raises(ValueError, match="not three different layers"):
        EagleConfig(**SMALL).resolve_feature_layer_ids(num_layers)


def test_last_layer_is_minus_one():
    assert EagleConfig(**SMALL, eagle_version=1).resolve_feature_layer_ids(7) == [7]


def test_features_outside_the_target_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"\[2, 30, 40\].*32 layers"):
        EagleConfig(**SMALL, feature_layer_ids=[2, 30, 40]).resolve_feature_layer_ids(32)


def test_round_trip(tmp_path):
    config = EagleConfig(**SMALL, draft_vocab_size=128, fc_norm=True, feature_layer_ids=[2, 4, 5])
    config.save_pretrained(tmp_path)
    assert EagleConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eagle_version": 2}, "must be 1 .* or 3"),
        ({"hidden_size": -64}, "`hidden_size` must be a positive size, got -64"),
        ({"num_key_value_heads": 3}, r"`num_attention_heads` \(4\) must be a multiple of `num_key_value_heads` \(3\)"),
        ({"head_dim": 15}, "`head_dim` must be even"),
        ({"draft_vocab_size": 513}, r"`draft_vocab_size` \(513\) must be between 1 and `vocab_size` \(512\)"),
        ({"feature_layer_ids": []}, "at least one hidden state"),
        ({"feature_layer_ids": [2, 2, 4]}, "names a hidden state twice"),
        ({"fc_norm": True, "norm_before_fc": True}, "exclude each other"),
        ({"target_hidden_size": 96, "draft_vocab_size": 128}, "needs `own_embed_tokens=True`"),
        ({"target_hidden_size": 96, "own_embed_tokens": True}, "Give it a `draft_vocab_size`"),
        ({"eagle_version": 1, "norm_output": True}, "`norm_output` exist in EAGLE-3 heads only"),
        ({"eagle_version": 1, "feature_layer_ids": [1, 2]}, "reads one hidden state"),
        ({"eagle_version": 1, "target_hidden_size": 96, "own_embed_tokens": True}, "as wide as its target"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EagleConfig(**(SMALL | fields))


def test_wrong_types_are_refused():
    with pytest.raises(Exception, match="hidden_size"):
        EagleConfig(**(SMALL | {"hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("ids", "sources"), [(None, [2, 4, 5]), ([-1], [-1]), ([8], [8]), ([1, 4, 8], [1, 4, 8]), ([1, 4, -1], [1, 4, -1])]
)
def test_the_last_layer_is_read_before_the_norm_unless_it_is_written_as_minus_one(ids, sources):
    config = EagleConfig(feature_layer_ids=ids, use_fc=ids is None or len(ids) > 1)
    assert config.feature_sources(8) == sources
