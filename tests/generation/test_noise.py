import pytest
import torch

from eagle_hf.generation.noise import SamplingNoise


def plain_columns(batch, vocab, num_columns, seed=0):
    """What plain `generate` draws, and where it leaves the generator."""
    torch.manual_seed(seed)
    columns = [torch.empty(batch, vocab).exponential_() for _ in range(num_columns)]
    return columns, torch.get_rng_state()


@pytest.mark.parametrize("batch", [1, 3])
def test_every_node_gets_the_row_of_its_column(batch):
    columns, _ = plain_columns(batch, 11, 12)
    torch.manual_seed(0)
    noise = SamplingNoise(batch, 11, torch.device("cpu"))
    depths = torch.tensor([[0, 1, 1, 2, 3]] * batch)
    for first in ([0] * batch, [2, 1, 4][:batch], [3, 4, 7][:batch]):
        got = noise.at_nodes(first, depths, max_depth=3)
        for row in range(batch):
            for node, depth in enumerate(depths[row].tolist()):
                assert torch.equal(got[row, node], columns[first[row] + depth][row])


@pytest.mark.parametrize("num_columns", range(8))
def test_the_generator_ends_where_plain_generate_leaves_it(num_columns):
    _, expected = plain_columns(1, 11, num_columns)
    torch.manual_seed(0)
    noise = SamplingNoise(1, 11, torch.device("cpu"))
    noise.at_nodes([0], torch.tensor([[0, 1, 2]]), max_depth=2)
    noise.at_nodes([2], torch.tensor([[0, 1, 5]]), max_depth=5)  # eight columns drawn by now
    noise.rewind(num_columns)
    assert torch.equal(torch.get_rng_state(), expected)


def test_columns_that_no_row_needs_any_more_are_forgotten():
    noise = SamplingNoise(1, 5, torch.device("cpu"))
    for column in range(0, 300, 3):
        noise.at_nodes([column], torch.tensor([[0, 1, 2, 3]]), max_depth=3)
        assert len(noise._blocks) <= 4
