"""What rows of the head see, beyond what is simply all rows before them."""

from collections.abc import Sequence

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
    mask: torch.Tensor | None,
    window: int,
    lengths: Sequence[int],
    num_rows: int,
    are_guesses: bool,
    device: torch.device,
) -> torch.Tensor | None:
    """
    Returns the mask of layers with a sliding window. A guess of depth `d` stands `d` rows behind the last true row, and
    sees that much less at the far end of the window:

    ```text
    window 4, true rows t0 to t4, a chain of guesses      t0 t1 t2 t3 t4 | g1 g2 g3
                                                     g1          x  x  x |  x
                                                     g2             x  x |  x  x
                                                     g3                x |  x  x  x
    ```

    Args:
        mask (`torch.BoolTensor` of shape `(batch_size, 1, num_rows, num_columns)`, *optional*):
            The mask of layers without a window; `None` where that is simply causal. Of the guesses, a guess sees its
            ancestors and itself, which were appended in the order of their depths.
        window (`int`): Rows that a row sees, itself included.
        lengths (`Sequence[int]` of length `batch_size`): True rows in the head's cache.
        num_rows (`int`): New rows.
        are_guesses (`bool`): Whether these are guesses.
        device (`torch.device`): Where to make it.

    Returns:
        `torch.BoolTensor` of the shape of `mask`; `None` where all that is visible is within the window.
    """
    past_len = max(lengths)
    num_columns = past_len + num_rows if mask is None else mask.shape[-1]
    if num_columns <= window:
        return None
    last = torch.tensor(lengths, device=device)[:, None, None]
    columns = torch.arange(num_columns, device=device)[None, None]
    rows = torch.arange(num_rows, device=device)[None, :, None]
    if mask is None:  # without a mask, columns are in place in all rows
        mask = (columns <= past_len + rows)[:, None]
    if are_guesses:
        own_path = mask[..., past_len:]  # (batch_size, 1, num_rows, num_guesses)
        depths = own_path.sum(dim=-1, keepdim=True)
        true_rows = (last - columns[..., :past_len])[:, None] + depths - 1 < window
        guesses = depths - own_path.cumsum(dim=-1) < window
        return mask & torch.cat([true_rows, guesses], dim=-1)
    new = columns - past_len  # which new row a column is, where it is one
    distance = torch.where(new < 0, last + rows - columns, rows - new)
    return mask & (distance < window)[:, None]
