import json
from collections import Counter

import pytest
import torch
from architectures import tiny_target
from conftest import GOLDEN, golden_draft
from doubles import random_draft

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint
from eagle_hf.training import coverage, cut_vocabulary, most_frequent_tokens


def test_the_draft_vocabulary_is_the_references():
    expected = json.loads((GOLDEN / "train" / "vocab_map.json").read_text())
    trained = [
        token
        for ids, mask in zip(expected["input_ids"], expected["loss_mask"], strict=True)
        for token, m in zip(ids, mask, strict=True)
        if m
    ]
    chosen = most_frequent_tokens(Counter(trained), expected["N"])
    assert chosen.tolist() == expected["used"]
    assert (chosen - torch.arange(expected["N"])).tolist() == expected["d2t"]


def test_among_equals_those_counted_first_win():
    assert most_frequent_tokens({9: 2, 4: 5, 7: 2, 3: 2}, 3).tolist() == [4, 7, 9]


def test_too_few_tokens_are_filled_up():
    assert most_frequent_tokens({3: 1}, 4).tolist() == [0, 1, 2, 3]


def test_the_head_takes_it():
    draft = golden_draft("A_eagle3")
    chosen = most_frequent_tokens(Counter(range(100, 200)), 80)
    draft.set_draft_vocabulary(chosen)
    assert torch.equal(draft.draft_to_target_ids, chosen)


def test_coverage_is_the_share_of_the_text():
    assert coverage({1: 6, 2: 3, 9: 1}, torch.tensor([1, 9])) == 0.7


@pytest.mark.parametrize("eagle_version", [1, 3])
def test_a_cut_head_drafts_what_the_whole_one_drafts_among_its_tokens(eagle_version):
    target = tiny_target("llama")
    whole = random_draft(target, eagle_version=eagle_version)
    tokens = torch.arange(1, 96, 3)
    rows = target.get_output_embeddings().weight
    cut = cut_vocabulary(whole, tokens, rows)
    assert cut.config.draft_vocab_size == len(tokens)
    assert cut.draft_to_target_ids.tolist() == tokens.tolist()
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        all_logits = hidden @ rows.T if eagle_version == 1 else whole.compute_logits(hidden)
        torch.testing.assert_close(cut.compute_logits(hidden), all_logits[:, tokens])
    state = cut.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in whole.state_dict().items() if name != "lm_head.weight")


def test_a_cut_eagle1_head_changes_drafts_and_not_the_text(tmp_path):
    target = tiny_target("llama")
    rows = target.get_output_embeddings().weight
    cut = cut_vocabulary(random_draft(target, eagle_version=1), torch.arange(0, 96, 2), rows)
    cut.save_pretrained(tmp_path)
    cut = EagleDraftModel.from_pretrained(tmp_path)
    prompt = torch.tensor([[5, 9, 11]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    plain = target.generate(prompt, **settings)
    cut.generation_config.output_draft_trees = True
    output = target.generate(prompt, assistant_model=cut, return_dict_in_generate=True, **settings)
    assert torch.equal(output.sequences, plain)
    drafted = {t for tree, _ in output.draft_trees for t in tree.tokens[0, 1:].tolist()}
    assert drafted
    assert all(token % 2 == 0 for token in drafted)


def test_a_cut_eagle1_head_is_not_exported_to_code_that_ignores_its_vocabulary(tmp_path):
    target = tiny_target("llama")
    cut = cut_vocabulary(random_draft(target, eagle_version=1), torch.arange(8), target.get_output_embeddings().weight)
    for layout in ("safeailab", "sglang"):
        with pytest.raises(ValueError, match="an `lm_head` of its own for 8 tokens"):
            export_checkpoint(cut, tmp_path, layout)


def test_what_cannot_be_cut_is_refused():
    target = tiny_target("llama")
    with pytest.raises(ValueError, match="needs the target's 96 rows"):
        cut_vocabulary(random_draft(target, eagle_version=1), torch.arange(8))
    with pytest.raises(ValueError, match="drafts from 8 of 96 tokens already"):
        cut_vocabulary(random_draft(target, draft_vocab_size=8), torch.arange(4))
