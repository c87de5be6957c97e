"""Trees of the compiled head are those of the head as it is."""

import pytest
import torch
from doubles import random_draft
from layouts import tiny_llama
from transformers import CompileConfig

from eagle_hf import DraftOptions
from eagle_hf.fast.compiled_head import CompiledDrafter, choose_drafter


TREES = {
    "dynamic": {"num_assistant_tokens": 9, "draft_depth": 3, "draft_width": 3},
    "chain": {"draft_tree": "chain", "draft_depth": 3},
    "static": {"draft_tree": "static"},
}


def noise_ahead(num_levels):
    """The same numbers in every call, level by level."""
    generator = torch.Generator().manual_seed(5)
    gumbels = -torch.empty(num_levels, 2, 512).exponential_(generator=generator).log()
    return gumbels.transpose(0, 1), torch.tensor(1.0)


def grown(target, batch, compile_config, **options):
    """Trees of a text: behind the prompt, behind accepted tokens, behind more than a graph reads, and a last one."""
    torch.manual_seed(0)
    draft = random_draft(target)
    drafter = choose_drafter(
        draft, DraftOptions(**options), target.get_input_embeddings(), None, compile_config, max_length=64
    )
    assert isinstance(drafter, CompiledDrafter) == (compile_config is not None)
    mask = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])[:batch]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    states, tokens = torch.randn(2, 7, 192)[:batch].split(64, dim=-1), torch.randint(512, (2, 7))[:batch]
    drafter.read_prompt(states, tokens, positions, mask if batch > 1 else None)
    roots, counts, trees = tokens[:, -1], [2, 1][:batch], []
    for num_steps, max_depth in ((0, 9), (1, 9), (6, 9), (1, 2)):
        for _ in range(num_steps):
            tokens = torch.randint(512, (2, 2))[:batch]
            drafter.read_accepted(torch.randn(2, 2, 192)[:batch], tokens, counts)
            roots = torch.stack([row[count - 1] for row, count in zip(tokens, counts, strict=True)])
        trees.append(drafter.grow(roots, max_depth, noise_ahead=lambda n: at_rows(noise_ahead(n), batch)))
    return trees, drafter.num_forwards


def at_rows(noise, batch):
    return noise[0][:batch], noise[1]


@pytest.mark.parametrize(
    ("tree", "batch"),
    [
        ("dynamic", 1),
        ("static", 2),
        *(pytest.param(*case, marks=pytest.mark.sweep) for case in (("dynamic", 2), ("static", 1), ("chain", 1))),
    ],
)
def test_compiled_trees_are_those_of_the_head_as_it_is(tree, batch):
    """And each is one graph: anything that ends it is an error here."""
    target = tiny_llama().float()
    torch._dynamo.reset()
    compiled, num_compiled = grown(
        target, batch, CompileConfig(backend="eager", mode="default", fullgraph=True), **TREES[tree]
    )
    torch._dynamo.reset()
    eager, num_eager = grown(target, batch, None, **TREES[tree])
    for one, other in zip(compiled, eager, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.parents.tolist() == other.parents.tolist()
        assert one.depths.tolist() == other.depths.tolist()
        assert one.max_depth >= int(one.depths.max())
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-4)
    assert {tree.tokens.tolist()[0][1] for tree in compiled} != {compiled[0].tokens.tolist()[0][1]}  # they differ
    assert num_compiled >= num_eager
