"""What llama.cpp's converter reads."""

import pytest
import torch
from doubles import random_draft
from layouts import read_head, tiny_llama

from eagle_hf import EagleDraftModel, export_checkpoint


def test_flags_that_llama_cpp_knows_are_written_and_come_back(tmp_path):
    fields = {"norm_before_residual": True, "fc_norm": True, "norm_output": True, "feature_layer_ids": [2, 4, 5]}
    draft = random_draft(tiny_llama(), draft_vocab_size=128, **fields)
    draft.set_draft_vocabulary(torch.arange(128) * 3)
    folder = export_checkpoint(draft, tmp_path, "llama.cpp")
    config, weights = read_head(folder)
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["target_hidden_size"] == 64
    assert {"fc.weight", "fc_norm.2.weight", "d2t", "layers.0.hidden_norm.weight"} <= weights.keys()
    again = EagleDraftModel.from_pretrained(folder)
    assert {name: getattr(again.config, name) for name in fields} == fields
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in draft.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 2}, "has 2 layers"),
        ({"qk_norm": True}, "`qk_norm`"),
        ({"norm_before_fc": True}, "`norm_before_fc`"),
        ({"eagle_version": 1}, "EAGLE-1"),
        ({"feature_layer_ids": [2, 4, -1]}, "not -1"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(random_draft(tiny_llama(), **fields), tmp_path, "llama.cpp")
