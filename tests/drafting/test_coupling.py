"""Drafts sampled with the target's random numbers: what they agree on, and that they change nothing else."""

import pytest
import torch

from eagle_hf.drafting.coupling import at_levels, for_vocabulary, log_probs


def noise_of(exponentials: torch.Tensor, temperature: float = 1.0):
    """Noise of one row and level from exponentials of shape `(vocab_size,)`."""
    return -exponentials.log()[None, None], torch.tensor(1 / temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(5))
def test_a_head_that_knows_the_target_drafts_what_multinomial_takes(temperature, seed):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    exponentials = torch.empty(1, 40).exponential_()
    torch.set_rng_state(state)
    taken = torch.multinomial((logits / temperature).softmax(-1)[None], 1)
    drafted = log_probs(logits[None, None], noise_of(exponentials[0], temperature)).argmax()
    assert drafted == taken


def test_heads_agree_as_often_as_the_distance_of_the_distributions_allows():
    """With probability (1 - TV) / (1 + TV) at least; the likeliest token alone is sampled less often here."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, generator=generator)
    head = target + 0.3 * torch.randn(50, generator=generator)
    p, q = target.softmax(-1), head.softmax(-1)
    distance = 0.5 * (p - q).abs().sum()
    gumbels = -torch.empty(20_000, 1, 50).exponential_(generator=generator).log()
    one = torch.tensor(1.0)
    sampled = (target + gumbels).argmax(-1)
    drafted = log_probs(head.expand(20_000, 1, -1), (gumbels, one)).argmax(-1)
    agreement = (sampled == drafted).double().mean()
    assert agreement > (1 - distance) / (1 + distance) - 0.01
    assert agreement > 2 * p.max()
    # Negative control: noise of another column is no better than drawing twice.
    other = (sampled == drafted.roll(1, 0)).double().mean()
    assert abs(other - (p * q).sum()) < 0.01


def test_without_noise_the_likeliest_tokens_are_drafted():
    logits = torch.randn(2, 3, 9)
    assert torch.equal(log_probs(logits, None), logits.log_softmax(-1))
    assert at_levels(None, 1) is None


def test_every_level_has_its_own_noise():
    noise = (torch.arange(12.0).view(1, 4, 3), torch.tensor(1.0))
    assert at_levels(noise, 2)[0].tolist() == [[[3, 4, 5]]]
    assert at_levels(noise, 1, 3)[0].tolist() == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]


def test_a_reduced_vocabulary_gets_the_noise_of_its_tokens():
    noise = (torch.arange(5.0).view(1, 1, 5), torch.tensor(1.0))
    assert for_vocabulary(noise, torch.tensor([4, 1]), 2)[0].tolist() == [[[4, 1]]]
    assert for_vocabulary(noise, None, 3)[0].tolist() == [[[0, 1, 2]]]
    assert for_vocabulary(noise, None, 6) is None  # tokens that the target does not have
