"""
In half precision a forward over many nodes rounds differently from one over a single token, as one over another batch
does. Where a text leaves that of plain `generate`, the target's two best tokens must be a near tie.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from architectures import VOCAB_SIZE, tiny_target
from conftest import use_options
from doubles import random_draft

from eagle_hf.generation import decoding
from eagle_hf.target import masks


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LARGEST_GAP = 4  # in units of the dtype's resolution at the largest logit


@pytest.fixture(scope="module")
def near_ties():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("near_ties", BENCHMARKS / "near_ties.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def gaps(near_ties, name, dtype):
    target = tiny_target(name, dtype=dtype)
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, VOCAB_SIZE, (1, 12), generator=generator) for _ in range(6)]
    return near_ties.compare(target, draft, prompts, max_new_tokens=24, eos_token_id=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_texts_differ_at_near_ties_only(near_ties, dtype):
    for found in gaps(near_ties, "llama", dtype).values():
        assert all(gap <= LARGEST_GAP for gap in found)


def test_a_wrong_mask_is_no_near_tie(near_ties, monkeypatch):
    """The rule must tell rounding from errors: here siblings see each other."""
    monkeypatch.setattr(decoding, "can_verify_trees", lambda model, **_: True)
    monkeypatch.setattr(
        masks.DraftTree, "ancestor_mask", lambda tree: torch.ones(1, tree.num_nodes, tree.num_nodes, dtype=torch.bool)
    )
    assert max(gaps(near_ties, "llama", torch.bfloat16)["with the draft"]) > LARGEST_GAP


def test_the_gap_is_that_of_the_two_best_tokens_where_texts_part(near_ties):
    target = tiny_target("llama", dtype=torch.bfloat16)
    text = torch.randint(3, VOCAB_SIZE, (10,), generator=torch.Generator().manual_seed(0))
    other = text.clone()
    other[7] += 1
    with torch.no_grad():
        logits = target(text[None, :7]).logits[0, -1].float().sort(descending=True).values
    expected = (logits[0] - logits[1]) / (2**-7 * logits.abs().max())
    assert near_ties.gap(target, text, other) == pytest.approx(float(expected))
    assert near_ties.gap(target, text, text[:9]) is None
