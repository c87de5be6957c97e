"""Checks, where texts part, whether both tokens were equally likely to within rounding."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


ROUNDING_STEPS = 8  # of the dtype, at the size of the larger logit


def first_difference(tokens: Sequence[int], others: Sequence[int]) -> int | None:
    """Returns the index of the first token that differs; `None` where the texts are equal."""
    if list(tokens) == list(others):
        return None
    pairs = zip(tokens, others, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))


@torch.inference_mode()
def is_near_tie(
    target: PreTrainedModel, prompt: torch.Tensor, tokens: Sequence[int], others: Sequence[int], place: int
) -> bool:
    """
    Checks whether two greedy texts part at a tie of the target's own logits: many rows in one forward round differently
    from one row in many. A gap of up to `ROUNDING_STEPS` steps of the dtype counts as a tie.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        prompt (`torch.LongTensor` of shape `(1, prompt_length)`): The prompt.
        tokens, others (`Sequence[int]`): Both texts.
        place (`int`): Where they part, from `first_difference`.
    """
    if place >= min(len(tokens), len(others)):
        return False  # one goes on where the other has ended
    ids = torch.cat([prompt[0], torch.tensor(list(tokens[:place]), device=prompt.device, dtype=prompt.dtype)])[None]
    logits = target(ids, use_cache=False).logits[0, -1]  # (vocab_size,)
    eps = torch.finfo(logits.dtype).eps
    pair = logits[[tokens[place], others[place]]].double()
    return bool((pair[0] - pair[1]).abs() <= ROUNDING_STEPS * eps * pair.abs().max())
