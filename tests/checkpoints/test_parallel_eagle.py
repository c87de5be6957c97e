"""P-EAGLE heads: reading them, and drafting with them in one forward."""

import json

import pytest
import torch
from conftest import use_options
from doubles import random_draft
from layouts import (
    DRAFT_VOCAB,
    FLAT,
    HIDDEN,
    VOCAB,
    check_reference,
    dense_head,
    random_inputs,
    read_head,
    reference,
    tiny_llama,
    write_head,
)  # fmt: skip

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint
from eagle_hf.draft_options import DraftOptions
from eagle_hf.fast.compiled_head import choose_drafter


EXTRA = {"mask_hidden": (1, 1, 3 * HIDDEN), "embed_tokens__weight": (VOCAB, HIDDEN)}
LAYER = {name: FLAT[name] for name in FLAT if name not in ("architectures", "draft_vocab_size")}
SPECULATORS = {
    "architectures": ["PEagleDraftModel"], "speculators_model_type": "peagle", "draft_vocab_size": DRAFT_VOCAB,
    "mask_token_id": 77, "embed_requires_grad": True, "norm_before_residual": False,
    "eagle_aux_hidden_state_layer_ids": [2, 4, 5], "transformer_layer_config": LAYER | {"num_hidden_layers": 4},
}  # fmt: skip
SPECFORGE = FLAT | {"architectures": ["PEagleDraftModel"], "norm_before_residual": True, "pad_token_id": 3}
AMAZON = FLAT | {
    "architectures": ["Eagle3LlamaForCausalLM"], "parallel_drafting": True, "ptd_token_id": 9,
    "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
}  # fmt: skip


def make(folder, config, num_layers=4):
    weights = dense_head(num_layers=num_layers, **EXTRA)
    return EagleDraftModel.from_pretrained(write_head(folder, config, weights)).eval(), weights


@pytest.mark.parametrize(
    ("config", "mask_token_id", "norm_before_residual"),
    [(SPECULATORS, 77, False), (SPECFORGE, 3, True), (AMAZON, 9, False), (AMAZON | {"pard_token": 8}, 8, False)],
)
def test_heads_of_all_trainers_load(tmp_path, config, mask_token_id, norm_before_residual):
    draft, weights = make(tmp_path, config)
    assert (draft.config.parallel_drafting, draft.config.mask_token_id) == (True, mask_token_id)
    assert draft.config.norm_before_residual == norm_before_residual
    assert draft.config.num_hidden_layers == 4
    assert torch.equal(draft.mask_hidden, weights["mask_hidden"])
    assert draft.generation_config.draft_tree == "chain"
    check_reference(draft, weights, norm_before_residual)


def test_a_chain_is_drafted_in_one_forward_with_placeholders(tmp_path):
    """Against a plain forward over the true rows and the placeholders, as such heads are trained."""
    draft, weights = make(tmp_path, SPECULATORS)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 6, 3 * HIDDEN, generator=generator)
    tokens = torch.randint(VOCAB, (1, 6), generator=generator)
    drafter = choose_drafter(draft, DraftOptions(draft_depth=4), lambda ids: None, lambda hidden: None)
    drafter.read_prompt([features], tokens, torch.arange(6)[None], None)
    before = drafter.num_forwards
    tree = drafter.grow(tokens[:, -1], max_depth=9)
    assert drafter.num_forwards == before + 1

    all_features = torch.cat([features, weights["mask_hidden"].expand(1, 3, -1)], dim=1)
    all_tokens = torch.cat([tokens, torch.full((1, 3), 77)], dim=1)
    _, logits = reference(weights, all_features, weights["embed_tokens.weight"][all_tokens])
    scores, draft_ids = logits[0, 5:].log_softmax(-1).max(-1)
    assert tree.tokens.tolist() == [[int(tokens[0, -1]), *draft.to_target_ids(draft_ids).tolist()]]
    torch.testing.assert_close(tree.scores[0, 1:], scores.cumsum(0), rtol=1e-4, atol=1e-4)
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3]]

    threshold = float(scores.cumsum(0)[1].exp()) * 0.99
    drafter.options = DraftOptions(draft_depth=4, draft_threshold=threshold)
    assert drafter.grow(tokens[:, -1], max_depth=9).num_nodes == 3
    assert drafter.grow(tokens[:, -1], max_depth=1).num_nodes == 2


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("draft_tree", ["chain", "dynamic"])
def test_the_text_is_that_of_plain_generate(tmp_path, do_sample, draft_tree):
    draft, _ = make(tmp_path, SPECULATORS)
    use_options(draft, draft_tree=draft_tree, num_assistant_tokens=5, draft_depth=6)
    target = tiny_llama()
    prompt = torch.tensor([[17, 204, 51, 130, 9], [0, 0, 33, 8, 250]])
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 24, "do_sample": do_sample}
    texts = []
    for assistant in (None, draft):
        torch.manual_seed(0)
        texts.append(target.generate(prompt, assistant_model=assistant, **options))
    assert torch.equal(texts[0], texts[1])


def test_a_head_that_does_not_say_its_placeholder_asks_for_it(tmp_path):
    config = {name: value for name, value in SPECFORGE.items() if name != "pad_token_id"}
    draft, _ = make(tmp_path, config)
    with pytest.raises(ValueError, match="mask_token_id="):
        tiny_llama().generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=4)
    draft = EagleDraftModel.from_pretrained(tmp_path, mask_token_id=4)
    tiny_llama().generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=4)


def test_export_to_vllm_keeps_everything(tmp_path):
    draft, weights = make(tmp_path / "theirs", SPECULATORS)
    config, written = read_head(export_checkpoint(draft, tmp_path / "ours", "vllm", target="org/target"))
    assert written.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.items())
    assert (config["speculators_model_type"], config["mask_token_id"]) == ("peagle", 77)


def test_speculators_own_class_computes_the_same(tmp_path):
    """Its training forward, in which every true row is continued by placeholders, against the chains that we draft."""
    core = pytest.importorskip("speculators.models.peagle.core")
    losses = pytest.importorskip("speculators.losses")
    target = tiny_llama()
    target.save_pretrained(tmp_path / "target")
    fields = {"num_hidden_layers": 4, "num_key_value_heads": 4, "own_embed_tokens": True, "mask_token_id": 5}
    draft = random_draft(target, parallel_drafting=True, feature_layer_ids=[2, 4, 5], **fields)
    draft.mask_hidden.data.normal_(generator=torch.Generator().manual_seed(0))
    folder = export_checkpoint(draft, tmp_path / "head", "speculators", target=str(tmp_path / "target"))
    config = json.loads((folder / "config.json").read_text())
    config["speculators_config"]["verifier"]["name_or_path"] = str(tmp_path / "target")  # the library loads it
    (folder / "config.json").write_text(json.dumps(config))
    theirs = core.PEagleDraftModel.from_pretrained(folder, dtype=torch.float32).eval()
    logits, positions = [], []
    theirs.lm_head.register_forward_hook(lambda module, args, output: logits.append(output[0]))
    theirs.rotary_emb.register_forward_pre_hook(lambda module, args: positions.append(args[1][0].tolist()))
    features, _ = random_inputs(draft)
    length = features.shape[1]
    tokens = torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs(
            features, tokens, document_ids=torch.zeros_like(tokens), loss_mask=torch.ones_like(tokens), num_depths=3,
            verifier_last_hidden_states=torch.zeros(1, length, HIDDEN), down_sample_ratio=1.0,
            down_sample_ratio_min=1.0, loss_config=losses.resolve_loss_config("ce", "eager"),
        )  # fmt: skip
    depth, rows = 0, {}  # which row is which guess behind which true row; rows come depth by depth
    for row, (before, position) in enumerate(zip([-1, *positions[0]], positions[0], strict=False)):
        depth += position < before
        rows[position - depth, depth] = logits[0][row]
    assert len(rows) > 2 * length
    for anchor in range(length):
        drafter = choose_drafter(draft, DraftOptions(draft_depth=3), lambda ids: None, lambda hidden: None)
        drafter.read_prompt([features[:, : anchor + 1]], tokens[:, : anchor + 1], torch.arange(anchor + 1)[None], None)
        tree = drafter.grow(tokens[:, anchor], max_depth=3)
        expected = [rows[anchor, depth].log_softmax(-1).max(-1) for depth in range(3) if (anchor, depth) in rows]
        assert tree.tokens[0, 1 : len(expected) + 1].tolist() == [int(best.indices) for best in expected]
        scores = torch.stack([best.values for best in expected]).cumsum(0)
        torch.testing.assert_close(tree.scores[0, 1 : len(expected) + 1], scores, rtol=1e-4, atol=1e-4)
