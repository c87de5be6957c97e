"""Latent attention of the head against that of DeepSeek-V3 in `transformers`."""

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from eagle_hf import EagleConfig, EagleDraftModel


YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
    "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64,
    "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize("q_lora_rank", [None, 10])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e4}, YARN], ids=["default", "yarn"])
@pytest.mark.parametrize("rope_interleave", [True, False])
def test_attention_is_that_of_transformers(q_lora_rank, rope, rope_interleave):
    theirs_config = DeepseekV3Config(
        **SIZES, q_lora_rank=q_lora_rank, rope_parameters=dict(rope), rope_interleave=rope_interleave,
        attn_implementation="eager",
    )  # fmt: skip
    theirs_config._attn_implementation = "eager"
    config = EagleConfig(
        **SIZES, q_lora_rank=q_lora_rank, rope_parameters=dict(rope), rope_interleave=rope_interleave,
        num_hidden_layers=2, rms_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    draft = EagleDraftModel(config).eval()
    theirs = DeepseekV3Attention(theirs_config, layer_idx=1).eval()
    ours = draft.layers[1].self_attn
    for parameter in theirs.parameters():
        parameter.data.uniform_(-1, 1)
    ours.load_state_dict(theirs.state_dict())

    inputs, positions = torch.randn(2, 7, 32), torch.arange(7)[None]
    mask = torch.full((7, 7), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        embeddings = DeepseekV3RotaryEmbedding(theirs_config)(inputs, positions)
        expected = theirs(inputs, position_embeddings=embeddings, attention_mask=mask)[0]
        got = ours(inputs, draft.rotary(positions), None, None)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_rope_head_dim": 3}, "must be even"),
        ({"v_head_dim": None}, "positive size `v_head_dim`, got None"),
        ({"num_key_value_heads": 2}, "groups of heads"),
        ({"q_lora_rank": 0}, "`q_lora_rank`"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EagleConfig(**(SIZES | fields))
