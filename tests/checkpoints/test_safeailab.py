"""The EAGLE authors' layout."""

import json

import pytest
import torch
from doubles import random_draft
from layouts import FLAT, SAMPLES, check_golden, check_reference, dense_head, read_head, rename, tiny_llama, write_head

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


AUTHORS = FLAT | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}


@pytest.mark.parametrize("name", ["safeailab-eagle1-llama3", "safeailab-eagle1-vicuna", "safeailab-eagle3-llama3"])
def test_samples_compute_what_the_authors_compute(name):
    check_golden(name)


def test_a_narrow_head_brings_its_own_embedding():
    config = check_golden("safeailab-eagle3-target_hidden_size").config
    assert (config.hidden_size, config.target_hidden_size, config.own_embed_tokens) == (64, 48, True)


def test_what_the_configuration_leaves_out_follows_from_the_authors_code(tmp_path):
    config = {name: value for name, value in AUTHORS.items() if not name.startswith("rope")} | {"num_hidden_layers": 40}
    weights = dense_head()
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, rename(weights, "layers.0.", "midlayer.")))
    assert draft.config.num_hidden_layers == 1
    assert draft.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert draft.config.feature_layer_ids is None
    check_reference(draft, weights)


def test_biases_of_qwen2_heads_are_seen_in_the_tensors(tmp_path):
    config, weights = read_head(SAMPLES / "safeailab-eagle1-llama3")
    sizes = {"q": 64, "k": 32, "v": 32}
    biases = {f"layers.0.self_attn.{p}_proj.bias": torch.randn(sizes[p]).half() for p in "qkv"}
    for said in ({"qkv_bias": True}, {}):
        draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config | said, weights | biases))
        assert draft.config.qkv_bias
        assert torch.equal(draft.layers[0].self_attn.k_proj.bias, biases["layers.0.self_attn.k_proj.bias"])


def test_the_form_that_early_vllm_wanted(tmp_path):
    config, weights = read_head(SAMPLES / "safeailab-eagle1-vicuna")
    nested = {"model_type": "eagle", "model": config | {"eagle_fc_bias": True}}
    copied = weights | {"lm_head.weight": torch.zeros(512, 64)}
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, nested, copied))
    assert (draft.config.eagle_version, draft.config.fc_bias) == (1, True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in draft.state_dict().items())


class TestExport:
    @pytest.mark.parametrize(
        "name",
        [
            "safeailab-eagle1-llama3", "safeailab-eagle1-vicuna", "safeailab-eagle3-llama3",
            "safeailab-eagle3-target_hidden_size",
        ],
    )  # fmt: skip
    def test_the_authors_own_heads_are_written_as_they_were(self, tmp_path, name):
        draft = EagleDraftModel.from_pretrained(SAMPLES / name)
        config, weights = read_head(SAMPLES / name)
        written_config, written = read_head(export_checkpoint(draft, tmp_path, "safeailab"))
        assert written.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
        said = {key: value for key, value in config.items() if key not in ("transformers_version",)}
        assert written_config | said == written_config

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"norm_before_residual": True}, "`norm_before_residual`"),
            ({"num_hidden_layers": 2}, "has 2 layers"),
            ({"qk_norm": True}, "`qk_norm`"),
            ({"fc_norm": True, "norm_output": True}, "`fc_norm`.*and.*`norm_output`"),
            ({"feature_layer_ids": [1, 2, 3]}, r"\[1, 2, 3\], and the authors' code always reads"),
            ({"feature_layer_ids": [1, 2]}, "reads 2 hidden states"),
            ({"eagle_version": 1, "feature_layer_ids": [8]}, r"`hidden_states` \[8\] instead of the last one after"),
            ({"hidden_act": "gelu"}, "the activation 'gelu'"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "'yarn'"),
        ],
    )
    def test_what_the_authors_code_cannot_compute_is_refused(self, tmp_path, fields, message):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "safeailab")
        assert not (tmp_path / "config.json").exists()

    def test_the_usual_layers_are_those_of_this_target(self, tmp_path):
        """[2, 4, 5] is the authors' choice for a target of 8 layers, and not for one of 9."""
        draft = random_draft(tiny_llama(), feature_layer_ids=[5, 2, 4])
        tiny_llama().save_pretrained(tmp_path / "eight")
        export_checkpoint(draft, tmp_path / "head", "safeailab", target=str(tmp_path / "eight"))
        config = json.loads((tmp_path / "eight" / "config.json").read_text())
        (tmp_path / "nine").mkdir()
        (tmp_path / "nine" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
        with pytest.raises(ValueError, match=r"of n = 9 layers"):
            export_checkpoint(draft, tmp_path / "head", "safeailab", target=str(tmp_path / "nine"))

    @pytest.mark.parametrize(("fc_bias", "num_warnings"), [(True, 1), (False, 0)])
    def test_what_vllm_does_with_a_bias_is_said(self, tmp_path, caplog, fc_bias, num_warnings):
        draft = random_draft(tiny_llama(), eagle_version=1, fc_bias=fc_bias)
        export_checkpoint(draft, tmp_path, "safeailab")
        said = [record.getMessage() for record in caplog.records]
        assert (
            sum("vLLM reads this layout, too, but drops the bias in silence" in text for text in said) == num_warnings
        )
