"""NVIDIA's layouts: Model Optimizer's, which TensorRT-LLM reads, and the heads for gpt-oss."""

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
    golden_errors,
    read_head,
    tiny_llama,
    write_head,
)  # fmt: skip

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


EAGLE_CONFIG = {
    "eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False,
    "next_layer_regular": True, "parallel_draft_step": 1, "parallel_draft_heads_num_layers": 1,
}  # fmt: skip
TRAINED_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def load(folder, weights, config=None, **eagle_config):
    weights = {name: tensor for name, tensor in weights.items() if name != "t2d"}
    return EagleDraftModel.from_pretrained(
        write_head(folder, FLAT | {"eagle_config": EAGLE_CONFIG | eagle_config} | (config or {}), weights)
    )


def test_the_sample_computes_what_engines_compute():
    """With the rotary embedding of training; engines use the one of the file, on purpose, and so do we."""
    draft = check_golden(
        "modelopt-eagle3-llama", bfloat16_embeds=True, prefix="serving_default_rope_", rope_parameters=TRAINED_ROPE
    )
    assert draft.config.rope_parameters == {
        "rope_type": "yarn", "rope_theta": 10000, "factor": 32.0, "original_max_position_embeddings": 2048,
    }  # fmt: skip
    assert draft.config.feature_layer_ids == [2, 4, 5]
    errors = golden_errors("modelopt-eagle3-llama", bfloat16_embeds=True, prefix="serving_default_rope_")
    assert errors["logits"] > 1e-2  # so that the comparison above can fail


def test_the_head_for_gpt_oss_computes_what_an_independent_forward_does():
    config = check_golden("nvidia-gptoss-v3-norm_before_fc").config
    assert config.norm_before_fc
    assert config.feature_layer_ids == [4, 6, 8]
    assert 8 in config.feature_sources(8)
    assert 36 not in config.feature_sources(36)


def test_two_layers(tmp_path):
    weights = dense_head(num_layers=2)
    draft = load(tmp_path, weights, {"num_hidden_layers": 2})
    assert draft.config.num_hidden_layers == 2
    check_reference(draft, weights)


def test_the_norm_of_later_layers_may_have_sglangs_name(tmp_path):
    weights = dense_head(num_layers=2)
    renamed = {n.replace("layers.1.input_layernorm", "layers.1.hidden_norm"): t for n, t in weights.items()}
    check_reference(load(tmp_path, renamed, {"num_hidden_layers": 2}), weights)


@pytest.mark.parametrize("with_hidden_norm", [True, False])
def test_without_auxiliary_features_the_last_hidden_state_is_read_after_the_norm(tmp_path, with_hidden_norm):
    weights = dense_head(num_features=1)
    del weights["fc.weight"]
    if not with_hidden_norm:
        del weights["layers.0.hidden_norm.weight"]
    draft = load(tmp_path, weights, use_aux_hidden_state=False, eagle_aux_hidden_state_layer_ids=[])
    assert (draft.config.use_fc, draft.config.feature_layer_ids) == (False, [-1])
    assert draft.config.hidden_norm == with_hidden_norm
    assert 8 not in draft.config.feature_sources(8)
    check_reference(draft, weights)


def test_a_first_layer_that_takes_the_embedding_as_it_is(tmp_path):
    weights = dense_head()
    del weights["layers.0.input_layernorm.weight"]
    check_reference(load(tmp_path, weights, use_input_layernorm_in_first_layer=False), weights)


def test_a_full_vocabulary_comes_with_a_copy_of_the_targets_lm_head(tmp_path):
    weights = dense_head() | {"lm_head.weight": torch.randn(VOCAB, HIDDEN)}
    del weights["d2t"]
    draft = load(tmp_path, weights, {"draft_vocab_size": VOCAB})
    assert not draft.has_reduced_vocabulary
    check_reference(draft, weights)


def test_heads_of_llama_4_name_the_width_of_their_mlp_apart(tmp_path):
    weights = dense_head()
    sizes = {"model_type": "llama4_text", "intermediate_size": 8192, "intermediate_size_mlp": FLAT["intermediate_size"]}
    check_reference(load(tmp_path, weights, sizes), weights)


def test_quantised_heads_are_refused(tmp_path):
    with pytest.raises(ValueError, match="quantised"):
        load(tmp_path, dense_head(), {"quantization_config": {"quant_algo": "FP8"}})


class TestExport:
    def test_their_own_head_is_written_as_it_was(self, tmp_path):
        draft = EagleDraftModel.from_pretrained(SAMPLES / "modelopt-eagle3-llama")
        config, weights = read_head(SAMPLES / "modelopt-eagle3-llama")
        for layout in ("modelopt", "tensorrt-llm"):
            written_config, written = read_head(export_checkpoint(draft, tmp_path, layout))
            assert written.keys() == weights.keys()
            assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
            new = ("transformers_version", "attention_dropout", "pretraining_tp", "torch_dtype")
            assert written_config | {k: v for k, v in config.items() if k not in new} == written_config

    def test_embedding_and_t2d_are_never_written(self, tmp_path):
        draft = random_draft(tiny_llama(), own_embed_tokens=True, draft_vocab_size=128, feature_layer_ids=None)
        draft.set_draft_vocabulary(torch.arange(128) * 4)
        _, weights = read_head(export_checkpoint(draft, tmp_path, "modelopt"))
        assert "d2t" in weights
        assert not weights.keys() & {"t2d", "embed_tokens.weight"}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"fc_norm": True}, "`fc_norm`"),
            ({"hidden_norm": False}, "no `hidden_norm`"),
            ({"input_layernorm": False}, "no `input_layernorm`"),
            ({"use_fc": False, "feature_layer_ids": [3]}, r"\[3\] instead of the last one after the final norm"),
            ({"feature_layer_ids": [2, 4, -1]}, "cannot say 0"),
            ({"norm_before_fc": True}, "`norm_before_fc`"),
            ({"qk_norm": True}, "`qk_norm`"),
            ({"norm_before_residual": True}, "`norm_before_residual`"),
            ({"target_hidden_size": 48, "own_embed_tokens": True}, "is 64 wide, and its target 48"),
            ({"eagle_version": 1}, "EAGLE-1"),
        ],
    )
    def test_what_the_layout_has_no_words_for_is_refused(self, tmp_path, fields, message):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "modelopt")
