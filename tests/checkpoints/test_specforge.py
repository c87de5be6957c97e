"""SpecForge's layout, which SGLang reads."""

import pytest
import torch
from doubles import random_draft
from layouts import (
    FLAT,
    HIDDEN,
    SAMPLES,
    VOCAB,
    check_golden,
    check_reference,
    dense_head,
    random_inputs,
    read_head,
    reference,
    rename,
    tiny_llama,
    write_head,
)  # fmt: skip

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


def specforge_head(folder, config=None, **extra):
    weights = dense_head(**extra)
    write_head(folder, FLAT | (config or {}), rename(weights, "layers.0.", "midlayer."))
    return EagleDraftModel.from_pretrained(folder), weights


def test_the_sample_computes_what_specforge_computes():
    config = check_golden("specforge-eagle3-sglang", bfloat16_embeds=True).config
    assert (config.feature_layer_ids, config.own_embed_tokens) == (None, False)


def test_the_hf_export_brings_an_embedding(tmp_path):
    draft, weights = specforge_head(tmp_path, embed_tokens__weight=(VOCAB, HIDDEN))
    assert torch.equal(draft.embed_tokens.weight, weights["embed_tokens.weight"])
    check_reference(draft, weights)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_lists_like_those_for_gpt_oss_count_outputs_of_layers(tmp_path, model_type):
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 17, 33], "use_aux_hidden_state": True}
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    draft, weights = specforge_head(tmp_path, {"model_type": model_type, "eagle_config": ids, **both})
    assert draft.config.feature_layer_ids == [2, 18, 34]
    assert draft.config.resolve_feature_layer_ids(36) == [2, 18, 34]
    check_reference(draft, weights)


def test_norm_output_does_not_mean_what_it_says(tmp_path):
    """SpecForge sets the flag for EAGLE-3.1 and trains with the state before the norm fed back all the same."""
    norms = {f"fc_norm__{i}__weight": (HIDDEN,) for i in range(3)}
    draft, weights = specforge_head(tmp_path, {"fc_norm": True, "norm_output": True}, **norms)
    assert (draft.config.fc_norm, draft.config.norm_output) == (True, False)
    check_reference(draft, weights)
    assert EagleDraftModel.from_pretrained(tmp_path, norm_output=True).config.norm_output


def test_old_names_of_the_norms_of_features(tmp_path):
    norms = {f"aux_norm_{name}__weight": (HIDDEN,) for name in ("low", "mid", "high")}
    draft, weights = specforge_head(tmp_path, {"use_aux_norm": True}, **norms)
    for i, name in enumerate(("low", "mid", "high")):
        weights[f"fc_norm.{i}.weight"] = weights.pop(f"aux_norm_{name}.weight")
        assert torch.equal(draft.fc_norm[i].weight, weights[f"fc_norm.{i}.weight"])
    check_reference(draft, weights)


def test_a_head_without_lm_head_uses_the_targets(tmp_path):
    weights = dense_head()
    for name in ("lm_head.weight", "d2t", "t2d"):
        del weights[name]
    config = {name: value for name, value in FLAT.items() if name != "draft_vocab_size"}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, rename(weights, "layers.0.", "midlayer.")))
    assert draft.lm_head is None
    features, embeds = random_inputs(draft)
    target_rows = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, logits = reference(weights | {"lm_head.weight": target_rows}, features, embeds)
        output = draft(draft.project_features(features), embeds)
        got = draft.compute_logits(output.last_hidden_state, lambda hidden: hidden @ target_rows.T)
    assert output.logits is None
    torch.testing.assert_close(output.last_hidden_state, hidden, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=1e-4)


class TestExport:
    def test_their_own_head_is_written_as_it_was(self, tmp_path):
        draft = EagleDraftModel.from_pretrained(SAMPLES / "specforge-eagle3-sglang")
        config, weights = read_head(SAMPLES / "specforge-eagle3-sglang")
        written_config, written = read_head(export_checkpoint(draft, tmp_path, "sglang"))
        assert written.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
        new = ("transformers_version", "attention_dropout", "pretraining_tp")
        assert written_config | {k: v for k, v in config.items() if k not in new} == written_config

    def test_both_spellings_of_rotary_embeddings_and_both_lists_of_layers(self, tmp_path):
        rope = {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
        draft = random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5], rope_parameters=rope)
        config, weights = read_head(export_checkpoint(draft, tmp_path, "sglang"))
        assert config["rope_parameters"] == rope
        assert (config["rope_theta"], config["rope_scaling"]) == (5e5, {"rope_type": "linear", "factor": 4.0})
        assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
        assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
        assert {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"} <= weights.keys()

    def test_lists_that_do_not_start_with_the_usual_layer_come_back(self, tmp_path):
        draft = random_draft(tiny_llama(), feature_layer_ids=[4, 6, 8])
        folder = export_checkpoint(draft, tmp_path, "sglang")
        assert read_head(folder)[0]["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [3, 5, 7]
        assert EagleDraftModel.from_pretrained(folder).config.feature_layer_ids == [4, 6, 8]

    def test_fed_back_norms_survive_although_specforges_do_not(self, tmp_path):
        folder = export_checkpoint(
            random_draft(tiny_llama(), norm_output=True, feature_layer_ids=None), tmp_path, "sglang"
        )
        assert EagleDraftModel.from_pretrained(folder).config.norm_output

    @pytest.mark.parametrize("qkv_bias", [False, True])
    def test_eagle1_heads_get_the_bias_that_sglang_always_has(self, tmp_path, qkv_bias):
        draft = random_draft(tiny_llama().float(), eagle_version=1, qkv_bias=qkv_bias)
        folder = export_checkpoint(draft, tmp_path, "sglang")
        config, weights = read_head(folder)
        assert config["architectures"] == ["Qwen2ForCausalLMEagle" if qkv_bias else "LlamaForCausalLMEagle"]
        assert not weights["fc.bias"].any()
        again = EagleDraftModel.from_pretrained(folder)
        features, embeds = random_inputs(draft)
        with torch.no_grad():
            got, expected = (d(d.project_features(features), embeds).last_hidden_state for d in (again, draft))
        torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"norm_before_residual": True}, "`norm_before_residual`"),
            ({"num_hidden_layers": 2}, "has 2 layers"),
            ({"qk_norm": True}, "`qk_norm`"),
            ({"qkv_bias": True, "o_bias": True}, "`qkv_bias`.*and.*`o_bias`"),
            ({"parallel_drafting": True, "mask_token_id": 3}, "P-EAGLE"),
            ({"feature_layer_ids": [0, 2, 4]}, "cannot say 0"),
            ({"feature_layer_ids": [5, 2, -1]}, "cannot say 0"),
            ({"fc_bias": True}, "`fc_bias`"),
        ],
    )
    def test_what_sglang_would_compute_wrongly_is_refused(self, tmp_path, fields, message):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "sglang")
