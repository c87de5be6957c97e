"""Heads with latent attention."""

import pytest
import torch
from doubles import random_draft
from layouts import FLAT, SAMPLES, check_golden, check_reference, dense_head, read_head, tiny_llama, write_head

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


LATENT = {
    "kv_lora_rank": 24, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4,
}  # fmt: skip


def test_the_sample_for_kimi_computes_what_its_class_computes():
    config = check_golden("kimi-mla-eagle3").config
    assert (config.kv_lora_rank, config.q_lora_rank, config.v_head_dim) == (24, 32, 16)
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim) == (16, 8)
    assert config.feature_layer_ids == [2, 4, 5]


@pytest.mark.parametrize(
    ("listed", "ids"), [([1, 3, 4], [2, 4, 5]), ([2, 4, 5], [2, 4, 5]), ([3, 30, 58], [3, 30, 58])]
)
@pytest.mark.parametrize("architecture", ["Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM"])
def test_lists_that_do_not_start_with_1_are_hidden_states(tmp_path, listed, ids, architecture):
    config, weights = read_head(SAMPLES / "kimi-mla-eagle3")
    config |= {"architectures": [architecture], "model_type": "deepseek_v3"}
    config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = listed
    assert EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights)).config.feature_layer_ids == ids


@pytest.mark.parametrize("optional", ["t2d", "d2t and t2d"])
def test_maps_of_the_vocabulary_are_optional(tmp_path, optional):
    config, weights = read_head(SAMPLES / "kimi-mla-eagle3")
    weights = {name: tensor for name, tensor in weights.items() if name not in optional}
    if "d2t" in optional:
        weights["lm_head.weight"] = torch.randn(512, 64).bfloat16()
        config["draft_vocab_size"] = 512
    assert EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights)).config.num_features == 3


def test_a_missing_part_of_the_attention_is_named(tmp_path):
    config, weights = read_head(SAMPLES / "kimi-mla-eagle3")
    del weights["layers.0.self_attn.kv_a_layernorm.weight"]
    with pytest.raises(ValueError, match="kv_a_layernorm.weight` is missing"):
        EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights))


class TestExport:
    @pytest.mark.parametrize("layout", ["vllm", "sglang"])
    def test_the_sample_is_written_as_it_was(self, tmp_path, layout):
        draft = EagleDraftModel.from_pretrained(SAMPLES / "kimi-mla-eagle3")
        config, weights = read_head(SAMPLES / "kimi-mla-eagle3")
        written_config, written = read_head(export_checkpoint(draft, tmp_path, layout))
        assert written.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
        assert written_config["architectures"] == ["Eagle3DeepseekV2ForCausalLM"]
        # To vLLM, a draft of type `deepseek_v3` is a layer of multi-token prediction, whatever its architecture.
        assert written_config["model_type"] == {"vllm": "kimi_k2", "sglang": "deepseek_v3"}[layout]
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_theta"):
            assert written_config[name] == config[name]
        assert written_config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
        assert written_config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]

    def test_sglangs_own_rule_for_lists_is_kept_in_mind(self, tmp_path):
        draft = random_draft(tiny_llama(), feature_layer_ids=[3, 5, 6], **LATENT)
        config, _ = read_head(export_checkpoint(draft, tmp_path, "sglang"))
        assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [3, 5, 6]
        for ids in ([1, 5, 6], [6, 1, 5]):
            with pytest.raises(ValueError, match=r"\[1, 5, 6\].*starts with 1"):
                export_checkpoint(random_draft(tiny_llama(), feature_layer_ids=ids, **LATENT), tmp_path, "sglang")
        config, _ = read_head(
            export_checkpoint(random_draft(tiny_llama(), feature_layer_ids=[1, 5, 6], **LATENT), tmp_path, "vllm")
        )
        assert config["eagle_aux_hidden_state_layer_ids"] == [1, 5, 6]  # vLLM looks at no other list

    @pytest.mark.parametrize("layout", ["vllm", "sglang"])
    def test_no_list_says_the_state_after_the_norm(self, tmp_path, layout):
        with pytest.raises(ValueError, match=r"no number for -1"):
            export_checkpoint(random_draft(tiny_llama(), feature_layer_ids=[2, 5, -1], **LATENT), tmp_path, layout)

    def test_vllm_has_no_norm_before_fc_of_such_heads(self, tmp_path):
        draft = random_draft(tiny_llama(), norm_before_fc=True, **LATENT)
        export_checkpoint(draft, tmp_path, "sglang")
        with pytest.raises(ValueError, match="`norm_before_fc`"):
            export_checkpoint(draft, tmp_path, "vllm")

    @pytest.mark.parametrize("layout", ["safeailab", "speculators", "modelopt", "llama.cpp"])
    def test_layouts_without_latent_attention_refuse_it(self, tmp_path, layout):
        with pytest.raises(ValueError, match="latent attention"):
            export_checkpoint(random_draft(tiny_llama(), **LATENT), tmp_path, layout)


def test_fields_of_flat_heads_do_not_disturb(tmp_path):
    """Only tensors decide: the configuration of a dense head may come from a target with latent attention."""
    weights = dense_head()
    config = FLAT | {"model_type": "deepseek_v3", "q_lora_rank": 1536, "kv_lora_rank": 512, "n_routed_experts": 256}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, weights))
    assert draft.config.kv_lora_rank is None
    check_reference(draft, weights)
