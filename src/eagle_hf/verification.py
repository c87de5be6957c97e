"""
Verification: which path of a draft tree the target itself would have taken.

At every node the target's own next token is chosen first, exactly as plain decoding chooses it: by argmax, or by one
draw from the processed distribution. If that token is among the node's children, the walk goes on there; else it stops.
Every token chosen on the way is a token of the output, so that a walk over `m` accepted drafts emits `m + 1` tokens:

```text
chosen by the target at  the -> cat,  cat -> ran,  ran -> away

the ─┬─ cat ─┬─ sat             accepted path: the, cat, ran (nodes 0, 1, 4)
     │       └─ ran             emitted:       cat, ran, away
     └─ dog ─── sat
```

This is lossless without any acceptance rule: the draft decides only how many tokens one target forward yields, never
which. For the deterministic (top-k) children of EAGLE it accepts exactly as often as recursive rejection sampling
(EAGLE-2, appendix; SpecInfer), whose acceptance probability of child `x_i` is `p(x_i)` as well.
"""

from collections.abc import Sequence

import torch


def choose_greedy(scores: torch.Tensor) -> torch.Tensor:
    """
    Returns the target's next token at every node in greedy decoding.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`): Processed logits of the target.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_nodes)`
    """
    return scores.argmax(dim=-1)


def choose_sampled(scores: torch.Tensor, exponentials: torch.Tensor) -> torch.Tensor:
    """
    Returns the target's next token at every node in sampling, for given random numbers. `torch.multinomial(p, 1)` draws
    one exponential `q` per token and returns `argmax(p / q)`; with the exponentials that plain decoding would have
    drawn for the same position, the choice is the same.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`): Processed logits, float32.
        exponentials (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`):
            Draws from the exponential distribution, one row per node; nodes of equal depth share theirs.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_nodes)`; -1 where the distribution contains NaN, which plain
        decoding refuses to sample from.
    """
    probs = scores.softmax(dim=-1)
    chosen = (probs / exponentials).argmax(dim=-1, keepdim=True)
    # argmax returns the NaN if there is one, and a softmax row holds only NaN or none.
    is_nan = probs.gather(-1, chosen).isnan()
    return chosen.masked_fill(is_nan, -1).squeeze(-1)


def accepted_path(tokens: Sequence[int], parents: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """
    Walks one tree from the root along the target's choices.

    Args:
        tokens (`Sequence[int]` of length `num_nodes`): Token of every node.
        parents (`Sequence[int]` of length `num_nodes`): Parent of every node, -1 for the root.
        chosen (`Sequence[int]` of length `num_nodes`): The target's next token at every node.

    Returns:
        `list[int]`: The nodes of the accepted path, root first. `chosen` at these nodes are the emitted tokens.

    Example:

    ```python
    >>> accepted_path(tokens=[9, 5, 6, 7], parents=[-1, 0, 0, 1], chosen=[5, 7, 0, 8])
    [0, 1, 3]
    ```
    """
    child = dict(zip(zip(parents, tokens, strict=True), range(len(tokens)), strict=True))
    path = [0]
    while (next_node := child.get((path[-1], chosen[path[-1]]))) is not None:
        path.append(next_node)
    return path
