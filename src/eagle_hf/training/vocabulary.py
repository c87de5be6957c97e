"""Choosing the draft vocabulary: the target tokens that the head can propose."""

from collections.abc import Mapping

import torch

from ..configuration_eagle import EagleConfig
from ..head.modeling_eagle import EagleDraftModel


def most_frequent_tokens(counts: Mapping[int, int], draft_vocab_size: int) -> torch.Tensor:
    """
    Returns the most frequent tokens of the training text, as [`EagleDraftModel.set_draft_vocabulary`] takes them.

    Args:
        counts (`Mapping[int, int]`):
            How often each target token occurs where the head is trained. Among equals, those counted first win.
        draft_vocab_size (`int`): How many tokens to choose.

    Returns:
        `torch.LongTensor` of shape `(draft_vocab_size,)`: Target ids in ascending order. If fewer tokens occur, the
        lowest of the other ids fill it up.
    """
    chosen = sorted(counts, key=lambda token: -counts[token])[:draft_vocab_size]
    taken, token = set(chosen), 0
    while len(chosen) < draft_vocab_size:
        if token not in taken:
            chosen.append(token)
        token += 1
    return torch.tensor(sorted(chosen))


def coverage(counts: Mapping[int, int], target_ids: torch.Tensor) -> float:
    """
    Returns the share of a text that a draft vocabulary holds; nothing else of it can be drafted.

    Args:
        counts (`Mapping[int, int]`): How often each target token occurs.
        target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`): The draft vocabulary.
    """
    return sum(counts.get(token, 0) for token in target_ids.tolist()) / max(sum(counts.values()), 1)


def cut_vocabulary(
    draft: EagleDraftModel, target_ids: torch.Tensor, lm_head_weight: torch.Tensor | None = None
) -> EagleDraftModel:
    """
    Returns a copy of a head that drafts from fewer tokens, so that its output layer costs less (FR-Spec). Drafts
    change, text does not. An EAGLE-1 or EAGLE-2 head, which uses the target's `lm_head`, gets rows of it as its own.

    Args:
        draft ([`EagleDraftModel`]): A head that drafts from the whole vocabulary.
        target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`):
            The tokens it is to draft, ascending; such as from [`most_frequent_tokens`].
        lm_head_weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`, *optional*):
            The target's output layer, `target.get_output_embeddings().weight`. Needed where the head has none.

    Raises:
        `ValueError`: if the vocabulary is reduced already, or rows are missing.
    """
    if draft.has_reduced_vocabulary:
        raise ValueError(
            f"The head drafts from {draft.config.draft_vocab_size} of {draft.config.vocab_size} tokens already; a "
            "smaller vocabulary is cut from a head of the whole one."
        )
    weight = lm_head_weight if draft.lm_head is None else draft.lm_head.weight
    if weight is None or weight.shape[0] < draft.config.vocab_size:
        raise ValueError(
            f"A head without `lm_head` of its own needs the target's {draft.config.vocab_size} rows as "
            f"`lm_head_weight`, got {None if weight is None else tuple(weight.shape)}."
        )
    config = EagleConfig.from_dict(draft.config.to_dict() | {"draft_vocab_size": len(target_ids)})
    with torch.random.fork_rng(devices=[]):  # the new head's random weights are all replaced
        cut = EagleDraftModel(config)
    cut = cut.to(device=draft.device, dtype=draft.dtype).train(draft.training)
    cut.load_state_dict(
        {name: tensor for name, tensor in draft.state_dict().items() if name != "lm_head.weight"}, False
    )
    if cut.lm_head is not None:
        cut.lm_head.weight.data.copy_(weight.detach()[target_ids.to(weight.device)])
    if cut.has_reduced_vocabulary:
        cut.set_draft_vocabulary(target_ids.to(draft.device))
    cut.generation_config = draft.generation_config
    return cut
