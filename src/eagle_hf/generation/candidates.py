"""
The head as the candidate generator that `transformers` knows: its own decoding loop asks for chains, ours for trees.

```text
                                         ┌── get_candidates ──  a chain and its logits, for `_assisted_decoding`
features, accepted tokens ──  Drafter  ──┤
                                         └── get_tree ────────  a draft tree, for loops that verify trees
```

Both are drafted by the same [`Drafter`]: nothing of the head is computed anywhere else.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.logits_process import LogitsProcessorList

from ..draft_options import DraftOptions, is_draft_option, written_options
from ..drafting.coupling import Noise
from ..drafting.policy import Plan
from ..fast.compiled_head import choose_drafter
from ..head.modeling_eagle import EagleDraftModel
from ..target.features import FeatureReader
from ..target.modules import lent_embedding, lent_lm_head
from ..tree import DraftTree
from .attaching import refuse_name
from .call import CallConfig
from .chosen_chain import ChoiceOfTokens, ChosenChain
from .converted_heads import align_draft
from .custom import is_spread_over_ranks
from .opening import open_options
from .pairing import check_call, check_pair
from .stock_loop import ChainAssistant, choosing_generators


class EagleCandidateGenerator(CandidateGenerator):
    """
    Drafts with an EAGLE head for one call of `generate`.

    In the decoding loop of `transformers`, which is for single texts, it drafts chains: greedily, or sampled where the
    text is, after the call's processors, so that the loop's rejections leave the distribution of the text as it is. See
    [`EagleCandidateGenerator.assisting`] for how it gets there.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head. It is not changed.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        logits_processor ([`~transformers.LogitsProcessorList`], *optional*): Likewise.
        options: Options of [`DraftOptions`]; the head's own hold for the others. A chain has `draft_depth` tokens, and
            no more than `num_assistant_tokens`.

    Attributes:
        acceptance_lengths (`list[int]`): Tokens that each verification added, as in [`EagleGenerateOutput`].

    Raises:
        `ValueError`: if the head does not fit the target, or an option is wrong.
    """

    requires_model_outputs = True

    def __init__(
        self,
        model: PreTrainedModel,
        draft: EagleDraftModel,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList | None = None,
        **options: Any,
    ):
        if unknown := [name for name in options if not is_draft_option(name)]:
            raise ValueError(f"Got unknown draft options {unknown}. Known: {', '.join(DraftOptions.__annotations__)}.")
        written = written_options(options, generation_config, model.generation_config)
        check_call(model, draft, generation_config, written)
        _refuse_other_drafts(CallConfig(model, vars(generation_config)), written)
        head = align_draft(model, draft)
        self.options = open_options(model, draft, head, True, written)
        gathered = is_spread_over_ranks(model)
        embed_tokens = lent_embedding(model, head.device, head.dtype, gathered)
        self.drafter = choose_drafter(head, self.options, embed_tokens, lent_lm_head(model, head.device, gathered))
        self.acceptance_lengths: list[int] = []
        self._choice = ChoiceOfTokens(
            generation_config, logits_processor or LogitsProcessorList(), self.drafter.head.target_ids, self.options
        )
        self._max_length = generation_config.max_length
        self._knows_prompt = False
        self._reader = FeatureReader(model, draft.config)
        wants_all = generation_config.output_hidden_states and generation_config.return_dict_in_generate
        self.model_kwargs_overrides = {"output_hidden_states": bool(wants_all) or self._reader.output_hidden_states}
        if self._reader.has_hook:  # nobody says when the call ends: its hooks go with this object
            self._reader.__enter__()
            weakref.finalize(self, self._reader.__exit__)

    # ------------------------------------------------------------------ what is known

    def _learn(
        self, input_ids: torch.Tensor, model_kwargs: dict[str, Any], model_outputs: Any, num_matches: int
    ) -> None:
        """Learns the features of the last forward, of the prompt or of accepted tokens."""
        if self._knows_prompt:
            count = num_matches + 1
            states = self._reader.states(model_outputs.hidden_states, count)
            features = FeatureReader.concatenate([state[:, :count] for state in states])
            self.drafter.read_accepted(features, input_ids[:, -count:], [count])
            return
        states = self._reader.states(model_outputs.hidden_states)
        seq_len = min(states[0].shape[1], input_ids.shape[1] - 1)  # the newest token has no feature yet
        positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        while positions.dim() > 1:  # (1, length), or (3, 1, length) for multimodal rotary
            positions = positions[0]
        if mask is not None:
            mask = mask[:, -seq_len - 1 : -1].bool()
        self.drafter.read_prompt(
            [state[:, -seq_len:] for state in states],
            input_ids[:, -seq_len:],
            positions[None, -seq_len - 1 : -1],
            None if mask is None or bool(mask.all()) else mask,
        )
        self._knows_prompt = True

    # ------------------------------------------------------------------ chains

    def get_candidates(
        self,
        input_ids: torch.Tensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = False,
        n_last_matches: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Drafts what may follow the text.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): The text.
            model_kwargs (`dict`, *optional*): What the target is called with: positions and mask of the text.
            model_outputs ([`~transformers.utils.ModelOutput`], *optional*): Of the target's last forward.
            is_first_iteration (`bool`, defaults to `False`): Whether the target has not run yet.
            n_last_matches (`int`, defaults to 0): Drafts of the last call that were accepted.

        Returns:
            `torch.LongTensor` of shape `(1, length + num_drafted)`: The text with drafts behind it.
            `torch.FloatTensor` of shape `(1, num_drafted, vocab_size)`, *optional*: The logits that they were drafted
            from, in float32, over the target's vocabulary: `-inf` for tokens that the head does not know. `None` where
            nothing is drafted.
        """
        if is_first_iteration or model_outputs is None:
            return input_ids, None
        self._learn(input_ids, model_kwargs or {}, model_outputs, int(n_last_matches))
        depth = self._max_length - input_ids.shape[1] - 1
        if depth < 1:
            return input_ids, None
        chain = ChosenChain(self._choice, input_ids, vocab_size=model_outputs.logits.shape[-1])
        self.drafter.grow_chain(depth, chain.choose)
        return chain.candidates()

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: Any) -> None:
        """
        Records what came of the drafts; a chain is as long next time.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): The text.
            scores (`torch.FloatTensor` of shape `(1, num_drafted + 1, vocab_size)`): The target's.
            num_matches (`int`): Drafts that were accepted.
        """
        if self._knows_prompt:  # the first forward of a loop is that of the prompt
            self.acceptance_lengths.append(int(num_matches) + 1)

    # ------------------------------------------------------------------ trees

    def get_tree(
        self,
        roots: torch.Tensor,
        max_depth: int,
        plan: Plan | None = None,
        noise_ahead: Callable[[int], Noise | None] | None = None,
    ) -> DraftTree:
        """
        Drafts a tree of the shape that the options ask for; see [`Drafter.grow`].

        Args:
            roots (`torch.LongTensor` of shape `(batch_size,)`): The newest tokens.
            max_depth (`int`): Deepest level that can be used.
            plan ([`Plan`], *optional*): Says whether to draft, and what is worth verifying.
            noise_ahead (`Callable`, *optional*): The noise that so many next tokens are going to be sampled with.
        """
        return self.drafter.grow(roots, max_depth, plan, noise_ahead)

    # ------------------------------------------------------------------ into the loop of transformers

    @classmethod
    @contextmanager
    def assisting(cls, model: PreTrainedModel, draft: EagleDraftModel, **options: Any) -> Iterator["ChainAssistant"]:
        """
        Lets the decoding loop of `transformers` draft with a head, as long as the context is open. What comes of it is
        passed to `generate` as `assistant_model`. It does not take [`install`].

        Args:
            model ([`~transformers.PreTrainedModel`]): The target.
            draft ([`EagleDraftModel`]): The head.
            options: Options of [`DraftOptions`].

        Returns:
            [`ChainAssistant`]

        Example:

        ```python
        >>> with EagleCandidateGenerator.assisting(target, draft) as assistant:  # doctest: +SKIP
        ...     target.generate(**inputs, assistant_model=assistant)
        ```
        """
        refuse_name(draft)
        head: Any = getattr(draft, "_orig_mod", draft)  # `torch.compile` wraps
        check_pair(model, head)
        assistant = ChainAssistant(head, partial(cls, **options))
        with choosing_generators(model):
            yield assistant


def _refuse_other_drafts(config: CallConfig, written: Mapping[str, Any]) -> None:
    """
    Checks that nothing is to be drafted but what the head says.

    Raises:
        `ValueError`: naming the option that asks for it.
    """
    name = config.other_drafter(written) or ("draft_retrieval" if written.get("draft_retrieval") else None)
    if name is not None:
        raise ValueError(
            f"Got `{name}`, which asks for other drafts than those of the head, but `EagleCandidateGenerator` has no "
            "others. Leave it out, or pass the head itself as `assistant_model`: that loop looks tokens up beside it."
        )
