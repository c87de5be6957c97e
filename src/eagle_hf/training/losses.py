"""
Measures how far the draft's distribution is from the target's, per position. All take log-probabilities of the draft
and probabilities of the target, of shape `(num_rows, draft_vocab_size)`, and return `(num_rows,)`.

With `p` the target, `q` the draft, and `a = sum(min(p, q))`, the chance that rejection sampling accepts a draft sampled
from `q`:

| name | loss |
|---|---|
| `cross_entropy` | `-sum(p log q)`; that of EAGLE-3 |
| `kl` | `sum(p log(p / q))`; the same gradient, 0 at its best |
| `reverse_kl` | `sum(q log(q / p))` |
| `total_variation` | `1 - a` |
| `lk_alpha` | `-log a` (LK losses, arXiv 2602.23881) |
| `lk_lambda` | `l * kl + (1 - l) * total_variation` with `l = exp(-3 a)`, `a` without gradient (the same paper) |
"""

from collections.abc import Callable

import torch


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_TINY = 1e-12  # keeps logarithms of vanishing probabilities finite
_LK_DECAY = 3.0


def acceptance(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the chance that a draft sampled from `q` is accepted: the overlap of both distributions."""
    return torch.minimum(log_q.exp(), p).sum(-1)


def cross_entropy(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy with the target's distribution."""
    return -(p * log_q).sum(-1)


def kl(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence from the target to the draft."""
    return (p * (p.clamp(min=_TINY).log() - log_q)).sum(-1)


def reverse_kl(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence from the draft to the target."""
    return (log_q.exp() * (log_q - p.clamp(min=_TINY).log())).sum(-1)


def total_variation(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the chance that a sampled draft is rejected."""
    return 1 - acceptance(log_q, p)


def lk_alpha(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the negative logarithm of the acceptance."""
    return -acceptance(log_q, p).clamp(min=_TINY).log()


def lk_lambda(log_q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence where the draft is far off, total variation where it is close."""
    accepted = acceptance(log_q, p)
    weight = torch.exp(-_LK_DECAY * accepted.detach())
    return weight * kl(log_q, p) + (1 - weight) * (1 - accepted)


LOSSES: dict[str, Loss] = {
    loss.__name__: loss for loss in (cross_entropy, kl, reverse_kl, total_variation, lk_alpha, lk_lambda)
}
