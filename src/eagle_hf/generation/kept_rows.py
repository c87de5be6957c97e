"""
The head's rows are kept with the cache that a call hands back, so that the next turn of a chat drafts as if the head
had read the whole text: the target computes nothing but the new tokens there, and the head sees no features of others.

They hang on the cache as an attribute: freed with it, shared by its deep copies, left out when it is pickled. Whoever
crops, extends or reorders the cache need not know of them. The next call compares token by token and takes the rows of
the beginning that is still the same. Where a call is given its new tokens alone, there is nothing to compare: rows are
taken if nobody has touched the cache in between.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ..drafting.drafter import Drafter
from ..drafting.head_rows import HeadRows, KeepsRows, owned
from ..head.modeling_eagle import EagleDraftModel
from ..target.recurrent import counts_columns
from ..target.target import PromptFeatures, Target
from .text import Text


_NAME = "_eagle_hf_rows"
UNKNOWN = -1  # stands for tokens that nobody has told


class RowsOfCache:
    """
    Lets a head go on with the rows that an earlier call on the same cache has left, and leaves its own for the next
    one. Made before the prefill, which changes the cache.

    Args:
        target ([`Target`]): The target.
        draft ([`EagleDraftModel`]): The head as the user has it.
        text ([`Text`]): The growing text.
    """

    def __init__(self, target: Target, draft: EagleDraftModel, text: Text):
        self._target, self._draft, self._text = target, draft, text
        self._kept, self._is_untouched = find_rows(target.cache, target.model, draft, text.batch_size)
        self._earlier_text: torch.Tensor | None = None  # (batch_size, n): what the cache holds and the call did not say
        self._columns = torch.empty(0)  # (batch_size, num_rows): what the head's rows up to the prompt's end stand for

    def begin(self, drafter: Drafter, prompt: PromptFeatures) -> None:
        """Lets the head begin with its rows of an earlier call on this cache, as far as they are of this text."""
        kept, self._kept = self._kept, None
        num_missing = self._target.num_prompt_columns - self._text.prompt_len
        if num_missing > 0:  # the call was given its new tokens alone, or embeddings
            earlier = self._text.ids.new_full((self._text.batch_size, num_missing), UNKNOWN)
            if kept is not None and self._is_untouched and prompt.first_column == num_missing == kept.length:
                earlier = kept.text[:, :num_missing].to(earlier.device)
            self._earlier_text = earlier
        columns = torch.arange(prompt.first_column, self._target.num_prompt_columns)
        self._columns = columns.expand(self._text.batch_size, -1)
        if kept is not None and prompt.first_column > 0 and isinstance(drafter, KeepsRows):
            valid = kept.valid(self.whole_text(), prompt.first_column)
            if valid.any():
                drafter.begin_with(kept.rows, valid)
                self._columns = torch.cat([kept.columns[:, : valid.shape[1]], self._columns], dim=1)

    def whole_text(self) -> torch.Tensor:
        """
        Returns the tokens of the cache's columns and the newest ones, of shape `(batch_size, length)`; [`UNKNOWN`]
        where nobody has told them.
        """
        ids = self._text.ids
        return ids if self._earlier_text is None else torch.cat([self._earlier_text, ids], dim=1)

    def known_text(self) -> torch.Tensor:
        """Returns the whole text if all of it is known, otherwise what this call was given and has written."""
        is_known = self._earlier_text is None or bool((self._earlier_text != UNKNOWN).all())
        return self.whole_text() if is_known else self._text.ids

    def keep(self, drafter: Drafter) -> None:
        """Keeps what the head knows with the target's cache, for the next call on it."""
        if not counts_columns(self._target.cache):
            return
        reads_prompt = self._target.is_users_cache  # which is meant to be used again, whatever this call needed
        rows = drafter.rows(reads_prompt) if isinstance(drafter, KeepsRows) else None
        if rows is None:
            return
        first = self._target.num_prompt_columns
        following = torch.arange(first, first + rows.real().shape[1] - self._columns.shape[1])
        columns = torch.cat([self._columns, following.expand(len(self._columns), -1)], dim=1)
        keep_rows(self._target.cache, self._target.model, self._draft, rows, columns, owned(self.whole_text()))


@dataclass(frozen=True)
class KeptRows:
    """
    Holds the rows of a head that belong to a cache.

    Args:
        rows ([`HeadRows`]): What the head knows.
        columns (`torch.LongTensor` of shape `(batch_size, num_rows)`): The column of the text that each row stands for.
        text (`torch.LongTensor` of shape `(batch_size, length + 1)`): Tokens by column, the newest included.
        length (`int`): Columns of the cache when it was handed back.
        target (`weakref.ref`): The target.
    """

    rows: HeadRows
    columns: torch.Tensor
    text: torch.Tensor
    length: int
    target: weakref.ref

    def valid(self, text: torch.Tensor, num_columns: int) -> torch.Tensor:
        """
        Returns which rows are those of another text.

        Args:
            text (`torch.LongTensor` of shape `(batch_size, length)`): The other text, by column.
            num_columns (`int`): Its columns that were in the cache already; the others are read anew.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, num_rows)`, up to the last one; on the CPU.
        """
        text = text.cpu()
        shared = min(text.shape[1], self.text.shape[1])
        same = (text[:, :shared] == self.text[:, :shared]) & (text[:, :shared] != UNKNOWN)
        num_same = same.long().cumprod(dim=1).sum(dim=1)
        # A row has read the feature of its column and the token behind it.
        valid = self.rows.real() & (self.columns < num_columns) & (self.columns + 1 < num_same[:, None])
        return valid[:, : int((valid.any(dim=0) * torch.arange(1, valid.shape[1] + 1)).max())]


# The keys of a layer, and how often they were changed in place.
_Mark = tuple[weakref.ref, int]


class _Attribute:
    """Holds what hangs on a cache: by head its rows, and what the layers were when the cache was handed back."""

    def __init__(self) -> None:
        self.kept: weakref.WeakKeyDictionary[EagleDraftModel, tuple[KeptRows, list[_Mark]]]
        self.kept = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Attribute":
        copied = _Attribute()
        for draft, (rows, marks) in self.kept.items():
            layers = [memo.get(id(keys())) for keys, _ in marks]  # layers are copied before this
            found = [keys for keys in layers if isinstance(keys, torch.Tensor)]
            copied.kept[draft] = rows, [_mark(keys) for keys in found] if len(found) == len(layers) else []
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a pickled cache is one of `transformers` alone


def _mark(keys: torch.Tensor) -> _Mark:
    return weakref.ref(keys), 0 if keys.is_inference() else keys._version


def _marks(cache: Cache) -> list[_Mark]:
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return [_mark(each) for each in keys if isinstance(each, torch.Tensor)]


def _are_same(marks: list[_Mark], others: list[_Mark]) -> bool:
    """Checks whether the layers are the same tensors with the same values; layers without keys do not tell."""
    return (
        bool(marks)
        and len(marks) == len(others)
        and all(
            keys() is other() and changes == other_changes
            for (keys, changes), (other, other_changes) in zip(marks, others, strict=True)
        )
    )


def keep_rows(
    cache: Cache,
    target: PreTrainedModel,
    draft: EagleDraftModel,
    rows: HeadRows,
    columns: torch.Tensor,
    text: torch.Tensor,
) -> None:
    """
    Keeps rows with a cache that is about to be handed back.

    Args:
        cache ([`~transformers.Cache`]): The target's, as the user gets it.
        target ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        rows ([`HeadRows`]): What it knows.
        columns (`torch.LongTensor` of shape `(batch_size, num_rows)`): The column that each row stands for.
        text (`torch.LongTensor` of shape `(batch_size, length)`): Tokens by column, [`UNKNOWN`] where nobody knows.
    """
    attribute = getattr(cache, _NAME, None) or _Attribute()
    kept = KeptRows(rows, columns.cpu(), text.cpu(), int(cache.get_seq_length()), weakref.ref(target))
    attribute.kept[draft] = kept, _marks(cache)
    setattr(cache, _NAME, attribute)


def find_rows(
    cache: Cache, target: PreTrainedModel, draft: EagleDraftModel, batch_size: int
) -> tuple[KeptRows | None, bool]:
    """
    Returns the rows that were kept for a head, if any, and whether nobody has touched the cache since.

    Args:
        cache, target, draft: As in [`keep_rows`].
        batch_size (`int`): Rows of the batch that is to be generated.
    """
    attribute = getattr(cache, _NAME, None)
    kept, marks = attribute.kept.get(draft, (None, [])) if attribute is not None else (None, [])
    if kept is None or kept.target() is not target or len(kept.text) != batch_size:
        return None, False
    return kept, int(cache.get_seq_length()) == kept.length and _are_same(marks, _marks(cache))
