"""Every loss is least where the draft is the target, and says what its formula says."""

import pytest
import torch

from eagle_hf.training import LOSSES
from eagle_hf.training.losses import acceptance, cross_entropy, kl, lk_alpha, lk_lambda, total_variation


@pytest.fixture
def distributions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=generator, dtype=torch.float64) * 2
    p = (torch.randn(6, 11, generator=generator, dtype=torch.float64) * 2).softmax(-1)
    return logits, p


@pytest.mark.parametrize("name", LOSSES)
def test_no_draft_is_better_than_the_target_itself(name, distributions):
    logits, p = distributions
    best, other = LOSSES[name](p.log(), p), LOSSES[name](logits.log_softmax(-1), p)
    assert (best < other).all()
    entropy = -(p * p.log()).sum(-1) if name == "cross_entropy" else torch.zeros(6, dtype=p.dtype)
    torch.testing.assert_close(best, entropy, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_reaches_the_target(name, distributions):
    logits, p = distributions
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        LOSSES[name](logits.log_softmax(-1), p).sum().backward()
        optimizer.step()
    assert (acceptance(logits.log_softmax(-1), p) > 0.97).all()


def test_kl_has_the_gradient_of_cross_entropy(distributions):
    logits, p = distributions
    gradients = []
    for loss in (kl, cross_entropy):
        leaf = logits.clone().requires_grad_()
        loss(leaf.log_softmax(-1), p).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_acceptance_is_the_chance_that_rejection_sampling_accepts(distributions):
    logits, p = distributions
    q = logits.softmax(-1)
    by_definition = (q * (p / q).clamp(max=1)).sum(-1)
    torch.testing.assert_close(acceptance(q.log(), p), by_definition)
    torch.testing.assert_close(total_variation(q.log(), p), 0.5 * (p - q).abs().sum(-1))
    torch.testing.assert_close(lk_alpha(q.log(), p), -by_definition.log())


def test_lk_lambda_is_kl_far_off_and_total_variation_close_by(distributions):
    _, p = distributions
    far = torch.full_like(p, -60.0)
    far[:, 0] = 0.0
    sharp = torch.zeros_like(p)
    sharp[:, 1] = 1.0  # no overlap with `far`
    torch.testing.assert_close(lk_lambda(far, sharp), kl(far, sharp), rtol=1e-6, atol=1e-6)
    near = (p.log() + 1e-4 * torch.randn(p.shape, dtype=p.dtype)).log_softmax(-1)
    weight = torch.exp(-3 * acceptance(near, p))
    torch.testing.assert_close(lk_lambda(near, p), weight * kl(near, p) + (1 - weight) * total_variation(near, p))


@pytest.mark.parametrize("name", LOSSES)
def test_vanishing_probabilities_stay_finite(name):
    log_q = torch.tensor([[0.0, -1e4, -1e4]], requires_grad=True)
    loss = LOSSES[name](log_q, torch.tensor([[0.0, 1.0, 0.0]])).sum()
    loss.backward()
    assert loss.isfinite()
    assert log_q.grad.isfinite().all()
