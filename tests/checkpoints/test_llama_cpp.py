"""What llama.cpp's converter reads."""

import json

import pytest
import torch
from doubles import random_draft
from layouts import DRAFT_VOCAB, TARGET_LAYERS, VOCAB, read_head, tiny_llama

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint


# What the llama.cpp of `llama_cpp_python` 0.3.36 did with random heads, one per option: how many of 48 chains of three
# tokens were those that we draft ("-" where it refuses the file), and, for what we refuse, the words that say why.
RAN = [
    ({}, "48", None),
    ({"feature_layer_ids": [0, 2, 4]}, "48", None),
    ({"feature_layer_ids": [5, 2, 4]}, "48", None),  # any order is kept
    ({"norm_before_residual": True}, "48", None),
    ({"norm_before_fc": True}, "48", None),
    ({"draft_vocab_size": None}, "48", None),
    ({"own_embed_tokens": True}, "48", None),
    ({"target_hidden_size": 48, "own_embed_tokens": True}, "48", None),
    ({"head_dim": 32}, "48", None),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "48", None),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, "48", None),
    ({"feature_layer_ids": [2, 4, 8]}, "1", "never fills the output of the last layer"),
    ({"norm_output": True}, "3", "`norm_output`"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "38", "the activation 'gelu_pytorch_tanh'"),
    ({"feature_layer_ids": [2, 4]}, "-", "reads 2 hidden states"),
    ({"feature_layer_ids": [1, 2, 4, 6]}, "-", "reads 4 hidden states"),
    ({"fc_norm": True}, "-", "`fc_norm`"),
]
# What it has no tensors or code for.
NOT_RUN = [
    ({"num_hidden_layers": 2}, "has 2 layers"),
    ({"qk_norm": True}, "`qk_norm`"),
    ({"mlp_bias": True}, "`mlp_bias`"),
    ({"fc_bias": True}, "`fc_bias`"),
    ({"qkv_bias": True, "o_bias": True}, "`qkv_bias`"),
    ({"eagle_version": 1}, "EAGLE-1"),
    ({"use_fc": False, "feature_layer_ids": [-1]}, "no `fc`"),
    ({"parallel_drafting": True, "mask_token_id": 3}, "P-EAGLE"),
    ({"sliding_window": 16}, "`sliding_window`"),
    ({"feature_layer_ids": [2, 4, -1]}, "llama.cpp numbers them from 0"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic'"),
]


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    tiny_llama().config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("fields", "chains", "message"), RAN)
def test_what_drafted_other_tokens_is_refused_and_all_else_is_written(tmp_path, target_folder, fields, chains, message):
    draft = random_draft(tiny_llama(), **({"draft_vocab_size": DRAFT_VOCAB} | fields))
    if draft.has_reduced_vocabulary:
        draft.set_draft_vocabulary(torch.arange(DRAFT_VOCAB) * 3)
    assert (chains == "48") == (message is None)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            export_checkpoint(draft, tmp_path, "llama.cpp", target=target_folder)
        return
    folder = export_checkpoint(draft, tmp_path, "llama.cpp", target=target_folder)
    config, weights = read_head(folder)
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == (draft.config.draft_vocab_size or VOCAB)  # by this its converter knows heads
    assert config["target_hidden_size"] == draft.config.target_hidden_size
    assert config["norm_before_fc"] == draft.config.norm_before_fc
    assert config["eagle_aux_hidden_state_layer_ids"] == draft.config.feature_layer_ids
    assert not config.keys() & {"norm_output", "fc_norm"}
    assert {"fc.weight", "layers.0.hidden_norm.weight"} <= weights.keys()
    again = EagleDraftModel.from_pretrained(folder)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in draft.state_dict().items())
    assert {name: getattr(again.config, name) for name in fields} == fields


@pytest.mark.parametrize(("fields", "message"), NOT_RUN)
def test_what_llama_cpp_has_no_code_for_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "llama.cpp")


class TestTheLastLayer:
    """llama.cpp never fills its output before the final norm, and which layer is the last one only the target says."""

    def export(self, tmp_path, ids, target):
        return export_checkpoint(
            random_draft(tiny_llama(), feature_layer_ids=ids), tmp_path, "llama.cpp", target=target
        )

    def test_it_may_be_read_where_it_is_not_the_last(self, tmp_path, target_folder, caplog):
        self.export(tmp_path, [2, 4, TARGET_LAYERS - 1], target_folder)
        assert not caplog.records

    @pytest.mark.parametrize(("ids", "num_warnings"), [([2, 4, 8], 1), ([8, 2, 4], 1), ([2, 4, 5], 0), ([5, 2, 4], 0)])
    def test_a_target_that_is_not_here_is_a_warning_unless_the_layers_are_the_usual_ones(
        self, tmp_path, caplog, ids, num_warnings
    ):
        self.export(tmp_path, ids, "org/not-here")
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == num_warnings
        assert all("If the target has 8 layers, llama.cpp drafts wrongly" in text for text in said)

    def test_layers_of_multimodal_targets_are_those_of_their_text(self, tmp_path):
        text = {"model_type": "llama", "num_hidden_layers": 5}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
        with pytest.raises(ValueError, match="its target has 5 layers"):
            self.export(tmp_path / "head", [2, 3, 5], str(tmp_path))
