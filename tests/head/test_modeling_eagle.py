"""The head: its outputs against the reference, its cache, its masks, saving and loading."""

import pytest
import torch
from conftest import GOLDEN, golden_draft
from transformers import AutoConfig, AutoModel, DynamicCache

from eagle_hf import EagleConfig, EagleDraftModel


VARIANTS = {
    "eagle3": {},
    "eagle1": {"eagle_version": 1, "draft_vocab_size": None},
    "eagle1-biases": {"eagle_version": 1, "draft_vocab_size": None, "fc_bias": True, "qkv_bias": True},
    "two-layers": {"num_hidden_layers": 2},
    "eagle1-two-layers": {"eagle_version": 1, "draft_vocab_size": None, "num_hidden_layers": 2},
    "qk-norm": {"qk_norm": True},
    "norm-before-residual": {"norm_before_residual": True},
    "norm-before-fc": {"norm_before_fc": True},
    "fc-norm-and-output": {"fc_norm": True, "norm_output": True},
    "narrow": {"target_hidden_size": 96, "own_embed_tokens": True},
    "full-vocabulary": {"draft_vocab_size": 512},
    "five-features": {"feature_layer_ids": [1, 2, 3, 4, 5]},
    "no-input-norm": {"input_layernorm": False},
    "head-dim": {"head_dim": 32},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64,
        }
    },
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def draft(request):
    fields = {
        "vocab_size": 512, "draft_vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    } | VARIANTS[request.param]  # fmt: skip
    torch.manual_seed(0)
    draft = EagleDraftModel(EagleConfig(**fields)).eval()
    for parameter in draft.parameters():  # norms too: ones would hide a norm in the wrong place
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
    if draft.has_reduced_vocabulary:
        draft.set_draft_vocabulary(torch.arange(128) * 4 + 1)
    return draft


def random_inputs(draft, batch=2, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = draft.config
    features = torch.randn(batch, length, config.num_features * config.target_hidden_size, generator=generator)
    embeds = torch.randn(batch, length, config.hidden_size, generator=generator)
    return draft.project_features(features), embeds


def test_outputs_are_the_references(golden_case, golden_target):
    draft, tensors = golden_draft(golden_case.draft), golden_case.tensors
    embed = draft.embed_tokens if draft.embed_tokens is not None else golden_target.get_input_embeddings()
    with torch.no_grad():
        hidden = draft.project_features(tensors["draft_in.features"])
        if "draft_in.fused" in tensors:
            torch.testing.assert_close(hidden, tensors["draft_in.fused"], atol=1e-5, rtol=0)
        output = draft(hidden, embed(tensors["draft_in.input_ids"]))
        logits = output.logits if output.logits is not None else golden_target.lm_head(output.last_hidden_state)
    torch.testing.assert_close(output.last_hidden_state, tensors["draft_out.hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, tensors["draft_out.logits"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_one_by_one_with_a_cache_are_all_rows_at_once(draft):
    hidden, embeds = random_inputs(draft)
    at_once = draft(hidden, embeds)
    cache = DynamicCache()
    for rows in (slice(0, 4), slice(4, 5), slice(5, 9)):
        output = draft(hidden[:, rows], embeds[:, rows], cache=cache)
        torch.testing.assert_close(output.last_hidden_state, at_once.last_hidden_state[:, rows], atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 9


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(draft):
    hidden, embeds = random_inputs(draft, batch=1)
    alone = draft(hidden, embeds).last_hidden_state
    padding = torch.full((1, 3, hidden.shape[-1]), 7.0)
    padded = draft(
        torch.cat([padding, hidden], 1),
        torch.cat([torch.full((1, 3, embeds.shape[-1]), 7.0), embeds], 1),
        attention_mask=torch.tensor([[0] * 3 + [1] * 9]),
        position_ids=torch.tensor([[0] * 3 + list(range(9))]),
    ).last_hidden_state
    torch.testing.assert_close(padded[:, 3:], alone, atol=1e-5, rtol=1e-4)
    assert padded.isfinite().all()


@torch.no_grad()
def test_additive_and_boolean_masks_are_the_same(draft):
    hidden, embeds = random_inputs(draft)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    mask |= torch.eye(9, dtype=torch.bool)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    results = [draft(hidden, embeds, attention_mask=m).last_hidden_state for m in (mask, additive)]
    torch.testing.assert_close(*results)


@torch.no_grad()
def test_saved_heads_load_bit_for_bit(draft, tmp_path):
    draft.generation_config.draft_depth = 3
    draft.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for loaded in (EagleDraftModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is EagleDraftModel
        assert loaded.config.to_diff_dict() == draft.config.to_diff_dict()
        assert loaded.generation_config.draft_depth == 3
        expected = draft.state_dict()
        assert set(loaded.state_dict()) == set(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        assert torch.equal(loaded.draft_to_target_ids, draft.draft_to_target_ids)
        assert not loaded.training


def test_auto_config_knows_the_head(draft, tmp_path):
    draft.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EagleConfig


def test_recurrence_is_the_reference_features_guess(golden_target):
    """What is fed back is the output before the norm (EAGLE-3), or after it where `norm_output` says so."""
    draft = golden_draft("A_eagle3")
    hidden, embeds = random_inputs(draft, batch=1)
    output = draft(hidden, embeds)
    torch.testing.assert_close(output.logits, draft.lm_head(draft.norm(output.last_hidden_state)))
    draft.config.norm_output = True
    normed = draft(hidden, embeds)
    torch.testing.assert_close(normed.last_hidden_state, draft.norm(output.last_hidden_state))
    torch.testing.assert_close(normed.logits, output.logits)


def test_dtype_and_device_are_those_asked_for(tmp_path):
    draft = EagleDraftModel.from_pretrained(GOLDEN / "drafts" / "A_eagle3", dtype=torch.bfloat16, device_map="cpu")
    assert draft.dtype == torch.bfloat16
    assert (draft.has_explicit_dtype, draft.has_explicit_device) == (True, True)
    assert draft.d2t.dtype == torch.int64
    assert golden_draft("A_eagle3").has_explicit_dtype is False


def test_draft_vocabulary_is_checked():
    draft = golden_draft("A_eagle3")
    draft.set_draft_vocabulary(torch.arange(80) * 4)
    assert draft.draft_to_target_ids.tolist() == [4 * i for i in range(80)]
    assert draft.to_target_ids(torch.tensor([[0, 79]])).tolist() == [[0, 316]]
    for wrong, message in (
        (torch.arange(79), r"\(79,\) target ids for a draft vocabulary of 80"),
        (torch.arange(80) * 5, "within 0 to 319"),
        (torch.zeros(80, dtype=torch.long), "ascending"),
    ):
        with pytest.raises(ValueError, match=message):
            draft.set_draft_vocabulary(wrong)


def test_a_head_without_lm_head_has_no_logits():
    draft = golden_draft("A_eagle1")
    output = draft(*random_inputs(draft))
    assert output.logits is None
    with pytest.raises(ValueError, match="Pass the target's"):
        draft.compute_logits(output.last_hidden_state)
    assert torch.equal(draft.draft_to_target_ids, torch.arange(320))


@torch.no_grad()
@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
def test_attention_is_the_one_that_is_asked_for(draft, tmp_path, monkeypatch, mask):
    draft.save_pretrained(tmp_path)
    hidden, embeds = random_inputs(draft)
    masks = {"none": None, "boolean": torch.ones(9, 9, dtype=torch.bool).tril().roll(1, 0).logical_or(torch.eye(9))}
    masks["additive"] = torch.zeros(9, 9).masked_fill(~masks["boolean"], torch.finfo(torch.float32).min)
    chosen = masks[mask] if mask == "none" else masks[mask].expand(2, 1, 9, 9)
    expected = draft(hidden, embeds, attention_mask=chosen).last_hidden_state
    eager = EagleDraftModel.from_pretrained(tmp_path, attn_implementation="eager")
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # is not called
        got = eager(hidden, embeds, attention_mask=chosen).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    eager.set_attn_implementation("sdpa")
    assert torch.equal(eager(hidden, embeds, attention_mask=chosen).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "no_such_attention"])
def test_attention_that_heads_do_not_have_is_refused(draft, tmp_path, name):
    draft.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{name}.*'sdpa', 'eager'"):
        EagleDraftModel.from_pretrained(tmp_path, attn_implementation=name)
    draft.config._attn_implementation = name
    with pytest.raises(ValueError, match=f"{name}.*'sdpa', 'eager'"):
        draft(*random_inputs(draft))
