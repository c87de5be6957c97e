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


@pytest.mark.parametrize("batch", [1, 3])
def test_gumbel_noise_takes_what_the_exponentials_take(batch):
    columns, _ = plain_columns(batch, 11, 8)
    probs = torch.rand(batch, 11, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    noise = SamplingNoise(batch, 11, torch.device("cpu"))
    noise.gumbels([0] * batch, 2)
    first = [2, 1, 4][:batch]
    gumbels = noise.gumbels(first, 3)
    for row in range(batch):
        for column in range(3):
            expected = (probs[row] / columns[first[row] + column][row]).argmax()
            assert (probs[row].log() + gumbels[row, column]).argmax() == expected


def test_an_exponential_of_zero_is_no_infinite_noise(monkeypatch):
    noise = SamplingNoise(1, 3, torch.device("cpu"))
    noise._blocks, noise._states = [torch.tensor([[0.0, 1.0, 2.0]])], [torch.get_rng_state()]
    assert noise.gumbels([0], 1).isfinite().all()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(default):
    """Plain `generate` samples from float32 probabilities whatever it is."""
    (expected,), state = plain_columns(2, 11, 1)
    torch.manual_seed(0)
    torch.set_default_dtype(default)
    try:
        got = SamplingNoise(2, 11, torch.device("cpu")).at_nodes([0, 0], torch.zeros(2, 1, dtype=torch.long), 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got[:, 0], expected)
    assert torch.equal(torch.get_rng_state(), state)
