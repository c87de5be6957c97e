"""Heads whose layers do not ascend, for engines that hand out hidden states in the order of layers."""

import pytest
import torch
from doubles import random_draft
from layouts import random_inputs, read_head, tiny_llama

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint
from eagle_hf.checkpoints.ascending import ascending


LATENT = {
    "kv_lora_rank": 24, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
OWN = {"own_embed_tokens": True}
PARALLEL = {"parallel_drafting": True, "mask_token_id": 3, "own_embed_tokens": True, "num_hidden_layers": 2}
# Every option whose tensors belong to one hidden state each, in every layout that can say it.
CASES = [
    *[(layout, {}, ids) for layout in ("vllm", "sglang", "modelopt") for ids in ([7, 2], [5, 2, 4], [4, 8, 3, 1])],
    ("safeailab", {}, [5, 2, 4]),
    ("vllm", {"fc_norm": True}, [5, 2, 4]),
    ("vllm", {"fc_norm": True, "target_hidden_size": 48} | OWN, [8, 1, 6, 2, 4]),
    ("vllm", {"norm_before_fc": True, "norm_output": True}, [5, 0, 4]),
    ("vllm", {"qk_norm": True, "num_hidden_layers": 2, "norm_before_residual": True}, [6, 4, 5, 1, 2]),
    ("vllm", PARALLEL, [5, 2, 4]),
    ("vllm", PARALLEL | {"norm_before_fc": True}, [6, 1, 2, 4]),
    ("vllm", LATENT, [5, 2, 4]),
    ("vllm", LATENT | {"fc_norm": True}, [6, 3]),
    ("sglang", LATENT | {"fc_norm": True}, [5, 2, 4]),
    ("sglang", LATENT | {"norm_before_fc": True}, [7, 5, 3, 6]),
    ("sglang", {"fc_norm": True}, [5, 2, 4]),
    ("sglang", {"norm_before_fc": True, "norm_output": True}, [5, 2, 4, 7]),
]


def head(fields, ids):
    draft = random_draft(tiny_llama().float(), feature_layer_ids=ids, **fields)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in draft.named_parameters():
        if "norm" in name or name == "mask_hidden":  # ones and zeros would hide what is mixed up
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return draft


@pytest.mark.parametrize(("layout", "fields", "ids"), CASES)
def test_the_list_is_sorted_and_the_head_computes_the_same(tmp_path, layout, fields, ids):
    draft = head(fields, ids)
    folder = export_checkpoint(draft, tmp_path, layout, target="org/target")
    again = EagleDraftModel.from_pretrained(folder)
    assert again.config.resolve_feature_layer_ids(8) == sorted(ids)
    config, _ = read_head(folder)
    if layout != "safeailab":  # which has no list
        assert config["eagle_aux_hidden_state_layer_ids"] == sorted(ids)
    expected = ascending(draft.config, draft.state_dict())[1]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())
    features, embeds = random_inputs(draft)
    by_layer = dict(zip(ids, features.chunk(len(ids), dim=-1), strict=True))
    in_order = torch.cat([by_layer[i] for i in sorted(ids)], dim=-1)
    with torch.no_grad():
        ours = draft(draft.project_features(features), embeds).logits
        torch.testing.assert_close(again(again.project_features(in_order), embeds).logits, ours, rtol=1e-3, atol=1e-3)
        mixed_up = again(again.project_features(features), embeds).logits
    assert not torch.allclose(mixed_up, ours, atol=0.1)
    if draft.config.parallel_drafting:
        masks = [d.project_features(d.mask_hidden) for d in (draft, again)]
        torch.testing.assert_close(*masks, rtol=1e-4, atol=1e-4)


def test_nothing_is_copied_where_the_order_is_right():
    draft = head({"fc_norm": True}, [2, 4, 5])
    weights = draft.state_dict()
    assert ascending(draft.config, weights) == (draft.config, weights)


def test_the_head_itself_stays_as_it_was(tmp_path):
    draft = head({"fc_norm": True}, [5, 2, 4])
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    export_checkpoint(draft, tmp_path, "vllm", target="org/target")
    assert draft.config.feature_layer_ids == [5, 2, 4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in draft.state_dict().items())


def test_a_list_of_layer_outputs_is_moved_along(tmp_path):
    """What a repository counts as outputs of layers may be meant otherwise, which its target only tells."""
    draft = head({}, [18, 2, 37])
    draft.config.published_feature_layer_ids = [17, 1, 36]
    config, _ = ascending(draft.config, draft.state_dict())
    assert (config.feature_layer_ids, config.published_feature_layer_ids) == ([2, 18, 37], [1, 17, 36])
    assert config.resolve_feature_layer_ids(36) == [1, 17, 36]
