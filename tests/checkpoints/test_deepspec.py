"""DeepSeek's EAGLE-3 heads for Qwen3, as its trainer DeepSpec writes them."""

import pytest
import torch
from layouts import FLAT, HEAD_DIM, HIDDEN, VOCAB, check_reference, dense_head, read_head, write_head

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


# Derived from the target's configuration, so that most of it speaks of that.
ABSENT = ("draft_vocab_size", "rope_theta", "rope_scaling")
CONFIG = {name: value for name, value in FLAT.items() if name not in ABSENT} | {
    "architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "layer_types": ["full_attention"],
    "sliding_window": None, "use_sliding_window": False, "max_window_layers": 36, "num_target_layers": 36,
    "target_model_name_or_path": "Qwen/Qwen3-4B", "target_layer_ids": [1, 9, 17, 25, 33], "ttt_length": 7,
    "step_loss_decay": 1.0, "draft_num_hidden_layers": 1, "tie_word_embeddings": False,
}  # fmt: skip


def tensors(num_layers=1, num_features=5):
    norms = {f"layers__{i}__self_attn__{x}_norm__weight": (HEAD_DIM,) for i in range(num_layers) for x in "qk"}
    full = {"embed_tokens__weight": (VOCAB, HIDDEN), "lm_head__weight": (VOCAB, HIDDEN)}
    weights = dense_head(num_layers=num_layers, num_features=num_features, **norms, **full)
    return {name: tensor for name, tensor in weights.items() if name not in ("d2t", "t2d")}


def load(folder, config=None, weights=None, **options):
    write_head(folder, CONFIG | (config or {}), tensors() if weights is None else weights)
    return EagleDraftModel.from_pretrained(folder, **options)


def test_five_hidden_states_an_embedding_and_all_tokens(tmp_path):
    draft = load(tmp_path)
    config = draft.config
    assert config.feature_layer_ids == [2, 10, 18, 26, 34]
    assert config.resolve_feature_layer_ids(36) == [2, 10, 18, 26, 34]
    assert (config.qk_norm, config.own_embed_tokens, config.draft_vocab_size) == (True, True, VOCAB)
    assert not draft.has_reduced_vocabulary
    assert config.base_model_name_or_path == "Qwen/Qwen3-4B"
    assert (config.norm_before_residual, config.norm_output) == (False, False)
    check_reference(draft, tensors())


@pytest.mark.parametrize("num_target_layers", [33, 34, 36])
def test_the_list_numbers_layers_whatever_the_target(tmp_path, num_target_layers):
    """The rule by which other lists are taken for hidden states once they contain the target's number of layers."""
    draft = load(tmp_path, {"num_target_layers": num_target_layers})
    if num_target_layers == 33:
        with pytest.raises(ValueError, match="belongs to another target"):
            draft.config.resolve_feature_layer_ids(33)
    else:
        assert draft.config.resolve_feature_layer_ids(num_target_layers) == [2, 10, 18, 26, 34]


@pytest.mark.parametrize("listed", [[0, 9, 17, 25, 33], [3, 9, 17], [5, 20]])
def test_lists_that_start_anywhere_and_of_any_length(tmp_path, listed):
    draft = load(tmp_path, {"target_layer_ids": listed}, tensors(num_features=len(listed)))
    assert draft.config.feature_layer_ids == [i + 1 for i in listed]


def test_several_layers(tmp_path):
    weights = tensors(num_layers=2)
    check_reference(load(tmp_path, {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, weights), weights)


def test_another_architecture_with_the_same_list(tmp_path):
    assert load(tmp_path, {"architectures": ["MyEagle"]}).config.feature_layer_ids == [2, 10, 18, 26, 34]


def test_the_user_has_the_last_word(tmp_path):
    assert load(tmp_path, feature_layer_ids=[1, 9, 17, 25, 33]).config.feature_layer_ids == [1, 9, 17, 25, 33]


def test_a_list_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reads 5 hidden states.*speaks of 3 .*outputs of layers \[1, 9, 17\]"):
        load(tmp_path, {"target_layer_ids": [1, 9, 17]})


def test_heads_of_gemmas_layers_are_refused_by_name(tmp_path):
    further = {"layers.0.pre_feedforward_layernorm.weight": torch.ones(HIDDEN), "layers.0.layer_scalar": torch.ones(1)}
    with pytest.raises(ValueError, match="layers of Gemma 4.*DeepSpec"):
        load(tmp_path, {"architectures": ["Gemma4Eagle3Model"], "model_type": "gemma4_text"}, tensors() | further)


def test_export_to_vllm_and_back(tmp_path):
    draft = load(tmp_path / "theirs")
    folder = export_checkpoint(draft, tmp_path / "ours", "vllm")
    config, weights = read_head(folder)
    assert config["transformer_layer_config"]["model_type"] == "qwen3"
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 10, 18, 26, 34]
    assert config["speculators_config"]["verifier"]["name_or_path"] == "Qwen/Qwen3-4B"
    assert weights.keys() == tensors().keys()
    again = EagleDraftModel.from_pretrained(folder)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in draft.state_dict().items())
    fields = ("feature_layer_ids", "qk_norm", "own_embed_tokens", "draft_vocab_size", "base_model_name_or_path")
    assert all(getattr(again.config, name) == getattr(draft.config, name) for name in fields)
    check_reference(again, tensors())


@pytest.mark.parametrize("layout", ["sglang", "modelopt", "llama.cpp", "safeailab"])
def test_engines_without_qk_norm_refuse_it(tmp_path, layout):
    with pytest.raises(ValueError, match="`qk_norm`"):
        export_checkpoint(load(tmp_path), tmp_path / "out", layout)
