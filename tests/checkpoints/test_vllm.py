"""What vLLM reads: EAGLE-1 heads in a flat layout, all others as other files of tests say."""

import pytest
import torch
from doubles import random_draft
from layouts import SAMPLES, random_inputs, read_head, tiny_llama

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


@pytest.mark.parametrize(
    "fields",
    [{}, {"own_embed_tokens": True}, {"qkv_bias": True}, {"mlp_bias": True}, {"num_hidden_layers": 2}],
)
def test_eagle1_heads_are_written_flat_and_come_back(tmp_path, fields):
    draft = random_draft(tiny_llama().float(), eagle_version=1, **fields)
    folder = export_checkpoint(draft, tmp_path, "vllm", target="org/target")
    assert (folder / "model.safetensors").exists()
    config, _ = read_head(folder)
    assert config["architectures"] == ["LlamaForCausalLM"]  # with the method `eagle`, EagleLlamaForCausalLM there
    assert (config["bias"], config["attention_bias"]) == (False, False)  # either would ask for a bias behind attention
    assert config["qkv_bias"] == draft.config.qkv_bias
    again = EagleDraftModel.from_pretrained(folder)
    assert again.state_dict().keys() == draft.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in draft.state_dict().items())
    features, embeds = random_inputs(draft)
    with torch.no_grad():
        outputs = [d(d.project_features(features), embeds).last_hidden_state for d in (draft, again)]
    assert torch.equal(*outputs)


def test_the_authors_heads_for_llama_3_can_be_written(tmp_path):
    folder = export_checkpoint(EagleDraftModel.from_pretrained(SAMPLES / "safeailab-eagle1-llama3"), tmp_path, "vllm")
    assert EagleDraftModel.from_pretrained(folder).config.eagle_version == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fc_bias": True}, "a bias on `fc`.*drops in silence"),
        ({"o_bias": True}, "`o_bias`"),
        ({"input_layernorm": True}, "an `input_layernorm`"),
        ({"qk_norm": True}, "`qk_norm`"),
        ({"draft_vocab_size": 100}, "an `lm_head` of its own"),
        ({"feature_layer_ids": [8]}, r"`hidden_states` \[8\] instead of the last one"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic'"),
    ],
)
def test_eagle1_heads_that_vllm_would_compute_otherwise_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(random_draft(tiny_llama(), eagle_version=1, **fields), tmp_path, "vllm")
    with pytest.raises(ValueError, match="is an EAGLE-1 head"):
        export_checkpoint(random_draft(tiny_llama(), eagle_version=1, **fields), tmp_path, "speculators")


@pytest.mark.parametrize("act", ["swish", "silu"])
@pytest.mark.parametrize("layout", ["vllm", "sglang", "modelopt", "llama.cpp", "safeailab"])
def test_two_names_of_silu_are_one(tmp_path, layout, act):
    """Engines know the one only."""
    draft = random_draft(tiny_llama(), hidden_act=act, feature_layer_ids=[2, 4, 5])
    config, _ = read_head(export_checkpoint(draft, tmp_path, layout, target="org/target"))
    assert config.get("transformer_layer_config", config)["hidden_act"] == "silu"


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "relu", "gelu"])
@pytest.mark.parametrize("layout", ["vllm", "sglang", "modelopt", "llama.cpp", "safeailab"])
def test_other_activations_are_refused_everywhere(tmp_path, layout, act):
    draft = random_draft(tiny_llama(), hidden_act=act, feature_layer_ids=[2, 4, 5])
    with pytest.raises(ValueError, match=f"the activation '{act}'"):
        export_checkpoint(draft, tmp_path, layout, target="org/target")


@pytest.mark.parametrize("num_features", [1, 2, 4, 5])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_how_many_hidden_states_are_read_is_said_where_vllms_layers_look(tmp_path, num_features, qk_norm):
    draft = random_draft(tiny_llama(), feature_layer_ids=[1, 2, 4, 5, 7][:num_features], qk_norm=qk_norm)
    config, _ = read_head(export_checkpoint(draft, tmp_path, "vllm", target="org/target"))
    assert config["transformer_layer_config"]["num_aux_hidden_states"] == num_features


def test_heads_without_lm_head_have_none_in_the_file(tmp_path):
    draft = random_draft(tiny_llama(), draft_vocab_size=None, feature_layer_ids=[2, 4, 5])
    config, weights = read_head(export_checkpoint(draft, tmp_path, "vllm", target="org/target"))
    assert "lm_head.weight" not in weights
    assert config["draft_vocab_size"] is None
    assert EagleDraftModel.from_pretrained(tmp_path).lm_head is None
