"""The layout of speculators, which vLLM reads."""

import json

import pytest
import torch
from doubles import random_draft
from layouts import (
    DRAFT_VOCAB,
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    MLP,
    SAMPLES,
    VOCAB,
    check_golden,
    check_reference,
    dense_head,
    golden_errors,
    random_inputs,
    read_head,
    tiny_llama,
    write_head,
)  # fmt: skip

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


LAYER = {
    "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCAB, "intermediate_size": MLP,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
NESTED = {
    "architectures": ["Eagle3DraftModel"], "auto_map": {"": "config.Eagle3SpeculatorConfig"},
    "speculators_model_type": "eagle3", "speculators_version": "0.9.0", "draft_vocab_size": DRAFT_VOCAB,
    "eagle_aux_hidden_state_layer_ids": [2, 4, 5], "norm_before_residual": False, "transformer_layer_config": LAYER,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "org/target"}},
}  # fmt: skip


def name_verifier(folder, target):
    """Put a path where exports have repositories only, for the library that loads it."""
    config = json.loads((folder / "config.json").read_text())
    config["speculators_config"]["verifier"]["name_or_path"] = str(target)
    (folder / "config.json").write_text(json.dumps(config))


def with_layer(**fields):
    return NESTED | {"transformer_layer_config": LAYER | fields}


def test_samples_compute_what_speculators_computes():
    config = check_golden("speculators-0.9-eagle3-llama").config
    assert (config.norm_before_residual, config.norm_output, config.feature_layer_ids) == (True, False, [2, 4, 5])
    config = check_golden("speculators-0.9-eagle3.1-llama-norm_before_fc-norm_output").config
    assert (config.norm_before_fc, config.norm_output) == (True, True)


def test_the_residual_variant_matters():
    """The comparison with the sample can fail: with the other variant it does."""
    assert golden_errors("speculators-0.9-eagle3-llama", norm_before_residual=False)["logits"] > 1e-2


def test_the_head_knows_its_target(tmp_path):
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, NESTED, dense_head()))
    assert draft.config.base_model_name_or_path == "org/target"


def test_the_first_versions_wrote_flat_rotary_embeddings_and_no_list_of_layers(tmp_path):
    layer = {name: value for name, value in LAYER.items() if name != "rope_parameters"}
    config = {
        "architectures": ["Eagle3Speculator"], "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "has_no_defaults_at_init": False, "norm_before_residual": True, "torch_dtype": "bfloat16",
        "draft_vocab_size": DRAFT_VOCAB, "speculators_model_type": "eagle3", "speculators_version": "0.1.0",
        "transformer_layer_config": layer | {"rope_theta": 10000.0, "rope_scaling": None},
        "speculators_config": {"verifier": {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]}},
    }  # fmt: skip
    weights = dense_head()
    copies = {"verifier_norm.weight": torch.ones(HIDDEN), "verifier_lm_head.weight": torch.ones(DRAFT_VOCAB, HIDDEN)}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights | copies))
    assert draft.config.feature_layer_ids is None
    assert draft.config.resolve_feature_layer_ids(8) == [2, 4, 5]
    check_reference(draft, weights, norm_before_residual=True)
    scaled = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    config["transformer_layer_config"] = layer | scaled
    rope = EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights)).config.rope_parameters
    assert rope == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}


@pytest.mark.parametrize("flags", [{"fc_norm": True}, {"fc_norm": False}, {}])
def test_norms_of_features_follow_from_the_tensors_whatever_the_flags_say(tmp_path, flags):
    norms = {f"fc_norm__{i}__weight": (HIDDEN,) for i in range(3)}
    weights = dense_head(**norms)
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, NESTED | flags, weights))
    assert draft.config.fc_norm
    check_reference(draft, weights)


def test_layers_of_qwen3_normalise_queries_and_keys(tmp_path):
    norms = {f"layers__{i}__self_attn__{p}_norm__weight": (HEAD_DIM,) for i in (0, 1) for p in "qk"}
    weights = dense_head(num_layers=2, **norms)
    types = {"layer_types": ["full_attention"] * 2, "sliding_window": None}
    config = with_layer(model_type="qwen3", num_hidden_layers=2, **types)
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights))
    assert (draft.config.num_hidden_layers, draft.config.qk_norm) == (2, True)
    check_reference(draft, weights)


def test_what_the_layer_leaves_out_has_the_defaults_of_its_class(tmp_path):
    layer = {name: value for name, value in LAYER.items() if name not in ("rms_norm_eps", "rope_parameters")}
    draft = EagleDraftModel.from_pretrained(
        write_head(tmp_path, NESTED | {"transformer_layer_config": layer}, dense_head())
    )
    assert draft.config.rms_norm_eps == 1e-6
    assert draft.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_a_residual_variant_that_is_not_given_is_what_vllm_takes(tmp_path):
    config = {name: value for name, value in NESTED.items() if name != "norm_before_residual"}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, dense_head()))
    assert draft.config.norm_before_residual


def test_biases_of_attention(tmp_path):
    prefix = "layers__0__self_attn__"
    biases = {f"{prefix}{p}_proj__bias": (s,) for p, s in (("q", 64), ("k", 32), ("v", 32), ("o", 64))}
    weights = dense_head(**biases)
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, with_layer(attention_bias=True), weights))
    assert (draft.config.qkv_bias, draft.config.o_bias) == (True, True)
    check_reference(draft, weights)


def test_more_than_three_hidden_states(tmp_path):
    config = NESTED | {"eagle_aux_hidden_state_layer_ids": [1, 2, 4, 6, 7]}
    weights = dense_head(num_features=5)
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights))
    assert draft.config.feature_layer_ids == [1, 2, 4, 6, 7]
    check_reference(draft, weights)


def test_a_window_is_kept(tmp_path):
    types = {"layer_types": ["sliding_attention"], "sliding_window": 2048}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, with_layer(**types), dense_head()))
    assert (draft.config.sliding_window, draft.config.sliding_window_layers) == (2048, None)


def test_a_part_of_each_head_may_be_rotated(tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    weights = dense_head()
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, with_layer(rope_parameters=rope), weights)).eval()
    attention = draft.layers[0].self_attn
    inputs = torch.randn(1, 5, 2 * HIDDEN)
    with torch.no_grad():
        query, _, _ = attention.project(inputs, draft.rotary(torch.arange(5)[None]))
        raw = attention.q_proj(inputs).view(1, 5, 4, HEAD_DIM).transpose(1, 2)
    half = HEAD_DIM // 2
    torch.testing.assert_close(query[..., half:], raw[..., half:])
    torch.testing.assert_close(query[:, :, 0], raw[:, :, 0])
    assert not torch.allclose(query[:, :, 1:, :half], raw[:, :, 1:, :half])


def test_layers_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'mixtral'.*`llama` or `qwen3`"):
        EagleDraftModel.from_pretrained(write_head(tmp_path, with_layer(model_type="mixtral"), dense_head()))


class TestExport:
    @pytest.mark.parametrize(
        "name", ["speculators-0.9-eagle3-llama", "speculators-0.9-eagle3.1-llama-norm_before_fc-norm_output"]
    )
    @pytest.mark.parametrize("layout", ["speculators", "vllm"])
    def test_their_own_heads_are_written_as_they_were(self, tmp_path, name, layout):
        draft = EagleDraftModel.from_pretrained(SAMPLES / name)
        config, weights = read_head(SAMPLES / name)
        written_config, written = read_head(export_checkpoint(draft, tmp_path, layout))
        assert written.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
        new = ("transformers_version", "auto_map", "transformer_layer_config", "speculators_config")
        assert written_config | {k: v for k, v in config.items() if k not in new} == written_config
        layer = {k: v for k, v in config["transformer_layer_config"].items() if k not in ("attention_dropout",)}
        layer.pop("pretraining_tp")
        assert written_config["transformer_layer_config"] | layer == written_config["transformer_layer_config"]
        assert written_config["speculators_config"]["verifier"]["name_or_path"] is None  # theirs was a path
        assert written_config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] > 0

    def test_hidden_states_are_listed_at_the_top_level(self, tmp_path):
        """vLLM reads no other list in all of its runners, and takes it for entries of `hidden_states`."""
        draft = EagleDraftModel.from_pretrained(SAMPLES / "kimi-mla-eagle3")
        for layout_draft in (draft, random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5])):
            config = json.loads((export_checkpoint(layout_draft, tmp_path, "vllm") / "config.json").read_text())
            assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]

    def test_the_target_may_be_named(self, tmp_path):
        folder = export_checkpoint(random_draft(tiny_llama()), tmp_path, "vllm", target="org/other")
        assert EagleDraftModel.from_pretrained(folder).config.base_model_name_or_path == "org/other"

    @pytest.mark.parametrize(("layers", "is_refused"), [(None, False), ([0, 1], False), ([1], True), ([0], True)])
    def test_vllm_has_a_window_in_all_layers_of_a_head_or_in_none(self, tmp_path, layers, is_refused):
        windows = {"sliding_window": 16, "sliding_window_layers": layers, "num_hidden_layers": 2}
        draft = random_draft(tiny_llama(), **windows)
        export_checkpoint(draft, tmp_path, "speculators")
        if is_refused:
            with pytest.raises(ValueError, match=r"in layers \[\d\] of 2 only"):
                export_checkpoint(draft, tmp_path, "vllm")
        else:
            export_checkpoint(draft, tmp_path, "vllm")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"eagle_version": 1}, "is an EAGLE-1 head"),
            ({"use_fc": False, "feature_layer_ids": [-1]}, "has no `fc`"),
            ({"fc_bias": True}, "`fc_bias`"),
            ({"qkv_bias": True}, "both biases or none"),
            ({"qk_norm": True, "qkv_bias": True, "o_bias": True}, "drop them in silence"),
            ({"qk_norm": True, "mlp_bias": True}, "drop them in silence"),
            ({"feature_layer_ids": [2, 5, -1]}, r"\[2, 5, -1\], and vLLM numbers"),
            ({"feature_layer_ids": [-3, 2, 4]}, "can be given as positive ones"),
            ({"parallel_drafting": True}, "with a `mask_token_id`"),
        ],
    )
    def test_what_the_layout_cannot_say_is_refused(self, tmp_path, fields, message):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "speculators")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True},
        {"num_hidden_layers": 2, "fc_norm": True},
        {"num_hidden_layers": 2, "qk_norm": True, "head_dim": 16},
        {"draft_vocab_size": DRAFT_VOCAB, "feature_layer_ids": [1, 2, 4, 7]},
    ],
)
def test_speculators_own_class_computes_the_same(tmp_path, fields):
    """Loads our export with the library itself; it predicts as we do, and so it does after its second step."""
    eagle3 = pytest.importorskip("speculators.models.eagle3")
    target = tiny_llama()
    target.save_pretrained(tmp_path / "target")
    draft = random_draft(target, own_embed_tokens=True, num_key_value_heads=4, **fields)
    if draft.has_reduced_vocabulary:
        draft.set_draft_vocabulary(torch.arange(DRAFT_VOCAB) * 4 + 1)
    for name, parameter in draft.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    folder = export_checkpoint(draft, tmp_path / "head", "speculators", target=str(tmp_path / "target"))
    name_verifier(folder, tmp_path / "target")
    theirs = eagle3.Eagle3DraftModel.from_pretrained(folder, dtype=torch.float32).eval()
    features, _ = random_inputs(draft)
    tokens = torch.randint(VOCAB, (1, features.shape[1]), generator=torch.Generator().manual_seed(0))
    inputs = []
    theirs.lm_head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        output = draft(draft.project_features(features), draft.embed_tokens(tokens))
        draft_ids = theirs(features, tokens, document_ids=torch.zeros_like(tokens), ttt_steps=1)
        torch.testing.assert_close(theirs.lm_head(inputs[0]), output.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(draft_ids[0], output.logits.argmax(-1))
    if draft.has_reduced_vocabulary:
        assert torch.equal(theirs.d2t, draft.d2t)
