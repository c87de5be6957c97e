"""Masks of the head: what its rows see of its cache."""

import torch


def causal(num_rows: int, past_len: int, device: torch.device) -> torch.Tensor:
    """
    Returns the causal mask of `num_rows` new rows behind `past_len` earlier ones.

    Returns:
        `torch.BoolTensor` of shape `(num_rows, past_len + num_rows)`
    """
    return torch.ones(num_rows, past_len + num_rows, dtype=torch.bool, device=device).tril(past_len)


def prompt_chunk_mask(start: int, end: int, mask: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """
    Returns what rows `start` to `end` of a prompt see of the rows before `end`: all of them that are no padding.

    Args:
        start, end (`int`): The rows.
        mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` where the prompt is padding.
        device (`torch.device`): Where to make it.

    Returns:
        `torch.BoolTensor` of shape `(batch_size or 1, 1, end - start, end)`; `None` where it would be simply causal.
    """
    if mask is None and start == 0:
        return None
    earlier = causal(end - start, start, device)
    if mask is None:
        return earlier[None, None]
    itself = earlier.triu(start)  # keeps padding rows from being NaN
    return (earlier & mask[:, None, :end] | itself)[:, None]


def within_window(
    mask: torch.Tensor | None, window: int, past_len: int, num_rows: int, device: torch.device
) -> torch.Tensor | None:
    """
    Makes the mask of layers with a sliding window: of all that a row sees without one, the newest. That holds for true
    rows, whatever padding and gaps lie between them, and for guesses, which see true rows and their own path:

    ```text
    columns           true rows      level 1   level 2   level 3        window of 4
                      a  b  c  d     e  f      g  h      i  j
    without           x  x  x  x     .  x      x  .      x  .           a guess of level 3: path f g i
    with a window     .  .  .  x     .  x      x  .      x  .           three guesses, which leave one true row
    ```

    Args:
        mask (`torch.BoolTensor` of shape `(batch_size, 1, num_rows, num_columns)`, *optional*):
            The mask of layers without a window; columns that a row sees are in the order of its text. `None` where that
            is simply causal.
        window (`int`): Rows that a row sees, itself included.
        past_len (`int`): Rows in the head's cache.
        num_rows (`int`): New rows.
        device (`torch.device`): Where to make it.

    Returns:
        `torch.BoolTensor` of the shape of `mask`; `None` where all that is visible is within the window.
    """
    if (past_len + num_rows if mask is None else mask.shape[-1]) <= window:
        return None
    if mask is None:
        mask = causal(num_rows, past_len, device)[None, None]
    num_newer = mask.flip(-1).cumsum(-1).flip(-1)  # of what the row sees, from this column on
    return mask & (num_newer <= window)
