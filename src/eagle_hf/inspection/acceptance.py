"""
Measures how far a greedy chain of the head agrees with what the target writes.

The target writes its own greedy answer once. From every position of the answer the head then drafts a chain, on the
answer's own tokens: as long as all drafted tokens were right, that is just what it would have seen when drafting, and
after the first wrong one nothing counts any more. So all chains of all positions run side by side:

```text
depth 1   row j: (feature j, token j + 1)                 sees rows 0 .. j of depth 1
depth 2   row j: (output of depth 1, token j + 2)         sees these, and itself
depth 3   row j: (output of depth 2, token j + 3)         sees these, row j of depth 2, and itself
```
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..head.modeling_eagle import EagleDraftModel
from ..target.config import TargetConfig
from ..target.features import FeatureReader, last_decoder_layer
from ..target.modules import lent_embedding, lent_lm_head


@dataclass(frozen=True)
class Answer:
    """
    A prompt and the target's greedy answer.

    Args:
        tokens (`torch.LongTensor` of shape `(1, length)`): Both.
        prompt_length (`int`): Tokens of the prompt.
        hidden_states (`dict[int, torch.Tensor]`):
            Of shape `(1, length, hidden_size)` by number: 0 is the embedding, `n` the output of the last of `n` layers
            before the final norm, -1 that after it.
    """

    tokens: torch.Tensor
    prompt_length: int
    hidden_states: dict[int, torch.Tensor]


@torch.inference_mode()
def write_answer(target: PreTrainedModel, prompt: torch.Tensor, max_new_tokens: int) -> Answer:
    """
    Lets the target answer a prompt of shape `(1, prompt_length)`, and keeps its hidden states.

    Returns:
        [`Answer`]
    """
    tokens = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=1, max_new_tokens=max_new_tokens
    )
    num_layers = TargetConfig(target.config).num_layers
    last: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    hook = last_decoder_layer(target, num_layers).register_forward_hook(keep)
    try:
        states = target(tokens, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        hook.remove()
    by_number = dict(enumerate(states)) | {num_layers: last[-1], -1: states[-1]}
    return Answer(tokens, prompt.shape[1], by_number)


@torch.inference_mode()
def accepted_counts(
    target: PreTrainedModel, draft: EagleDraftModel, answer: Answer, depth: int, token_shift: int = 0
) -> torch.Tensor:
    """
    Returns how many tokens of the chain from every position of an answer are right.

    Args:
        target ([`~transformers.PreTrainedModel`]): Its embedding and `lm_head` serve a head that has none.
        draft ([`EagleDraftModel`]): The head.
        answer ([`Answer`]): From `write_answer`.
        depth (`int`): Length of the chains.
        token_shift (`int`, *optional*, defaults to 0): See [`Reading`].

    Returns:
        `torch.LongTensor` of shape `(num_positions,)`, 0 to `depth`; empty if the answer is too short for a chain.
    """
    tokens = answer.tokens
    num_rows = tokens.shape[1] - 1 - depth  # rows whose whole chain lies within the answer
    if num_rows < answer.prompt_length:
        return tokens.new_empty(0)
    tokens = tokens.to(draft.device)
    lent, lm_head = lent_embedding(target, draft.device, draft.dtype), lent_lm_head(target, draft.device)
    embed_tokens = lent if draft.embed_tokens is None else draft.embed_tokens
    hidden = draft.project_features(_features(draft, answer)[:, :num_rows])

    cache = DynamicCache()
    true_rows = torch.ones(num_rows, num_rows, dtype=torch.bool, device=draft.device).tril()
    itself = torch.eye(num_rows, dtype=torch.bool, device=draft.device)
    positions = torch.arange(num_rows, device=draft.device)[None]
    agrees = []
    for step in range(depth):
        first = step + 1 + token_shift
        paired = tokens[:, first : first + num_rows]
        following = tokens[:, first + 1 : first + 1 + num_rows]
        if step and draft.config.parallel_drafting:  # P-EAGLE drafts from placeholders, not from its own output
            hidden = draft.project_features(draft.mask_hidden).expand(1, num_rows, -1)
            paired = torch.full_like(paired, cast(int, draft.config.mask_token_id))
        output = draft(
            hidden,
            embed_tokens(paired),
            attention_mask=torch.cat([true_rows, *[itself] * step], dim=1)[None, None],
            position_ids=positions + step,
            cache=cache,
        )
        hidden = output.last_hidden_state
        drafted = draft.to_target_ids(draft.compute_logits(hidden, lm_head).argmax(dim=-1))
        agrees.append(drafted == following)
    counts = torch.cat(agrees).cumprod(dim=0).sum(dim=0)  # (num_rows,)
    return counts[answer.prompt_length - 1 :]  # the first root is the answer's first token


def _features(draft: EagleDraftModel, answer: Answer) -> torch.Tensor:
    """Returns the features of shape `(1, length, num_features * target_hidden_size)`."""
    states = [answer.hidden_states[i] for i in draft.config.feature_sources(max(answer.hidden_states))]
    return FeatureReader.concatenate(states, draft.device, draft.dtype)


def share_by_depth(counts: Sequence[int], depth: int) -> list[float]:
    """Returns the share of chains whose first 1, 2, ... `depth` tokens are all right."""
    return [sum(count >= step for count in counts) / max(len(counts), 1) for step in range(1, depth + 1)]
