"""Drafters that are no EAGLE heads are told apart, and the error says what runs them."""

import pytest
import torch
from layouts import FLAT, HIDDEN, dense_head, tiny_llama, write_head

from eagle_hf import EagleDraftModel


def without_first_norm():
    weights = {name: t for name, t in dense_head(2).items() if "layers.0.hidden_norm" not in name}
    weights["layers.0.self_attn.q_proj.weight"] = torch.zeros(64, HIDDEN)
    return weights


DFLASH = without_first_norm() | {"hidden_norm.weight": torch.ones(HIDDEN)}
DFLASH_ZLAB = {name: t for name, t in DFLASH.items() if name not in ("lm_head.weight", "d2t", "t2d")}
ZLAB = FLAT | {
    "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "num_target_layers": 36,
    "dflash_config": {"mask_token_id": 5, "target_layer_ids": [1, 9]},
}  # fmt: skip
MTP_LAYER = {"mtp_layers.0.input_proj.weight": torch.ones(4, 8), "mtp_layers.0.final_layernorm.weight": torch.ones(4)}


@pytest.mark.parametrize(
    ("config", "weights", "messages"),
    [
        ({"speculators_model_type": "dflash", "block_size": 8}, DFLASH, ["DFlash", "speculation_type='dflash'"]),
        (ZLAB, DFLASH_ZLAB, ["DFlash", "speculation_type='dflash'"]),
        (FLAT, DFLASH, ["DFlash"]),
        ({"speculators_model_type": "mtp"}, MTP_LAYER, ["MTP", "use_mtp=True"]),
        (FLAT, MTP_LAYER, ["MTP", "use_mtp=True"]),
        (
            {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1},
            {"model.layers.61.eh_proj.weight": torch.ones(4, 8)},
            ["MTP"],
        ),
        ({"medusa_num_heads": 4}, {"0.0.linear.weight": torch.ones(4, 4)}, ["Medusa"]),
        ({"model_type": "mlp_speculator"}, {"emb.0.weight": torch.ones(4, 4)}, ["MLP speculator"]),
        ({"model_type": "gemma4_assistant"}, {"model.x": torch.ones(4)}, ["Gemma", "assistant_model"]),
        ({"speculators_model_type": "dspark"}, {"x": torch.ones(4)}, ["'dspark'"]),
        ({"model_type": "llama"}, {"base.lora_A.weight": torch.ones(4)}, ["adapter"]),
    ],
)
def test_other_drafters_are_refused_with_a_pointer(tmp_path, config, weights, messages):
    with pytest.raises(ValueError, match="no EAGLE head") as error:
        EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights))
    for message in messages:
        assert message in str(error.value)


def test_a_whole_model_is_refused_with_a_pointer(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="whole language model.*assistant_model=model"):
        EagleDraftModel.from_pretrained(tmp_path)
