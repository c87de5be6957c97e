"""Levels: what the nodes of a tree see, level by level, and that drafting knows no device."""

import re
from pathlib import Path

import pytest
import torch
from doubles import random_draft
from layouts import tiny_llama

import eagle_hf.drafting
from eagle_hf.drafting.levels import CompleteHead
from eagle_hf.drafting.true_rows import TrueRows


@torch.no_grad()
@pytest.mark.parametrize("draft_vocab_size", [None, 512, 100], ids=["borrowed", "own", "reduced"])
def test_a_node_sees_the_true_rows_and_its_path(draft_vocab_size):
    """Nodes of level 2 with different parents, against plain forwards over each path; each level is one forward."""
    target = tiny_llama().float()
    draft = random_draft(target, num_hidden_layers=2, draft_vocab_size=draft_vocab_size)
    if draft_vocab_size == 100:
        draft.set_draft_vocabulary(torch.arange(100) * 5 + 3)
    embed, lm_head = target.get_input_embeddings(), target.get_output_embeddings()
    generator = torch.Generator().manual_seed(0)
    features, tokens = torch.randn(1, 6, 192, generator=generator), torch.randint(512, (1, 6), generator=generator)
    rows = TrueRows(CompleteHead.make(draft, embed, lm_head))
    rows.read_prompt([features], tokens, torch.arange(6)[None], None)
    levels = rows.levels(3, None)
    scores, children = levels.children(rows.last_hidden, 2, 1)  # (1, 1, 2)
    first = children[0]
    itself = torch.eye(2, dtype=torch.bool)[None]
    hidden, more_scores, _ = levels.expand(rows.last_hidden.expand(-1, 2, -1), first, itself, 2, 1)
    second = torch.tensor([[8, 9]])
    among = torch.cat([itself.flip(1), itself], dim=-1)  # node 0 is a child of the second one, node 1 of the first
    hidden = levels.step(hidden.flip(1), second, among, 2)
    assert levels.num_forwards == 2

    def plain(path):
        hidden, embeds = (
            draft.project_features(features),
            embed(torch.cat([tokens, torch.tensor([path], dtype=torch.long)], dim=1)),
        )
        for length in range(6, 7 + len(path)):
            output = draft(hidden, embeds[:, :length])[0]
            hidden = torch.cat([hidden, output[:, -1:]], dim=1)
        return output[:, -1]

    expected = draft.compute_logits(plain([]), lm_head)[0].log_softmax(-1).topk(2)
    torch.testing.assert_close(scores[0, 0], expected.values, atol=1e-4, rtol=1e-4)
    assert first[0].tolist() == draft.to_target_ids(expected.indices).tolist()
    for node, token in enumerate(first[0].tolist()):
        of_node = draft.compute_logits(plain([token]), lm_head)[0].log_softmax(-1).topk(2).values
        torch.testing.assert_close(more_scores[0, node], of_node, atol=1e-4, rtol=1e-4)
    for node, path in enumerate(([int(first[0, 1]), 8], [int(first[0, 0]), 9])):
        torch.testing.assert_close(hidden[:, node], plain(path), atol=1e-4, rtol=1e-4)


def test_no_file_of_drafting_asks_for_a_device_or_whether_it_is_compiled():
    for path in Path(eagle_hf.drafting.__file__).parent.glob("*.py"):
        assert not re.search(r"device\.type|is_cuda|is_compiling|is_on_cpu|has_fixed_shapes", path.read_text()), path
