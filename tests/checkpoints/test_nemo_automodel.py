"""NeMo Automodel's layout."""

import pytest
from layouts import FLAT, HIDDEN, VOCAB, check_reference, dense_head, write_head

from eagle_hf import EagleDraftModel


CONFIG = FLAT | {
    "architectures": ["LlamaEagle3DraftModel"], "target_hidden_size": HIDDEN, "num_aux_hidden_states": 3,
    "layer_types": ["full_attention"] * 8, "torch_dtype": "bfloat16",
}  # fmt: skip


def nemo_head(folder, config=None, **extra):
    weights = dense_head(embed_tokens__weight=(VOCAB, HIDDEN), **extra)
    top = ("lm_head.weight", "d2t", "t2d")
    prefixed = {name if name in top else f"model.{name}": tensor for name, tensor in weights.items()}
    return EagleDraftModel.from_pretrained(write_head(folder, CONFIG | (config or {}), prefixed)), weights


def test_the_prefix_is_taken_off(tmp_path):
    draft, weights = nemo_head(tmp_path)
    assert draft.config.own_embed_tokens
    assert draft.config.resolve_feature_layer_ids(8) == [2, 4, 5]
    check_reference(draft, weights)


@pytest.mark.parametrize("architecture", ["LlamaEagle3DraftModel", "LlamaForCausalLMEagle3"])
def test_eagle_3_1_feeds_back_normalised_states(tmp_path, architecture):
    norms = {f"fc_norm__{i}__weight": (HIDDEN,) for i in range(3)}
    flags = {"fc_norm": True, "norm_output": True, "architectures": [architecture]}
    draft, weights = nemo_head(tmp_path, flags, **norms)
    assert (draft.config.fc_norm, draft.config.norm_output) == (True, True)
    check_reference(draft, weights)


def test_outputs_of_layers_are_listed(tmp_path):
    draft, _ = nemo_head(tmp_path, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}})
    assert draft.config.feature_layer_ids == [2, 4, 5]
