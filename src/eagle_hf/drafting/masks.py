"""What rows of the head see, beyond what is simply all rows before them."""

import torch


def prompt_chunk_mask(start: int, end: int, mask: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """
    What rows `start` to `end` of a prompt see of the rows before `end`: all of them that are no padding.

    Args:
        start, end (`int`): The rows.
        mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` where the prompt is padding.
        device (`torch.device`): Where to make it.

    Returns:
        `torch.BoolTensor` of shape `(batch_size or 1, 1, end - start, end)`; `None` where it would be simply causal.
    """
    if mask is None and start == 0:
        return None
    causal = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)
    if mask is None:
        return causal[None, None]
    itself = causal.triu(start)  # keeps padding rows from being NaN
    return (causal & mask[:, None, :end] | itself)[:, None]


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
        mask = torch.ones(num_rows, past_len + num_rows, dtype=torch.bool, device=device).tril(past_len)[None, None]
    num_newer = mask.flip(-1).cumsum(-1).flip(-1)  # of what the row sees, from this column on
    return mask & (num_newer <= window)
