"""Opens what the loop works with: the options of a call, its drafter, and what its trees are sized by."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import logits_process
from transformers.generation.logits_process import LogitsProcessorList
from transformers.utils import logging

from ..cache.fixed import capacity, columns_of_prompt, fixed_sizes, with_room
from ..draft_options import DraftOptions
from ..drafting.auto_size import AutoSize, known_size
from ..drafting.costs import PairCosts, StepCosts
from ..drafting.drafter import Drafter
from ..drafting.policy import FixedSize
from ..drafting.retrieval import Retrieval
from ..fast.compiled_head import choose_drafter
from ..fast.compiled_target import CompiledTarget, compiled_call, loads_kernels
from ..fast.cpu_target import CPUTarget
from ..fast.waiting import reads_freely
from ..head.modeling_eagle import EagleDraftModel
from ..target.chain import ChainTarget
from ..target.features import FeatureReader
from ..target.forward import cache_argument
from ..target.modules import lent_embedding, lent_lm_head
from ..target.probe import is_recurrent
from ..target.recurrent_target import RecurrentTarget
from ..target.rotary_switch import RotarySwitch, SwitchingChainTarget, SwitchingRecurrentTarget, SwitchingTarget
from ..target.target import Target
from .choosing import Chooser, NodeChooser
from .kept_rows import RowsOfCache
from .noise import SamplingNoise
from .path_chooser import PathChooser
from .scores import ScoreRecords
from .text import Text
from .token_chooser import TokenChooser


logger = logging.get_logger(__name__)

# Processors whose output depends on the logits alone: neither on the prefix nor on earlier calls.
PREFIX_FREE_PROCESSORS = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper",
        "EpsilonLogitsWarper", "EtaLogitsWarper", "TopHLogitsWarper", "SuppressTokensLogitsProcessor",
        "InfNanRemoveLogitsProcessor", "LogitNormalization",
    )
)  # fmt: skip


def open_options(
    model: PreTrainedModel,
    draft: EagleDraftModel,
    head: EagleDraftModel,
    is_tree: bool,
    written: Mapping[str, Any] | None,
) -> DraftOptions:
    """
    Returns the shape of a call's trees, as far as the target can verify them and the head can draft them.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head as the user has it, with its options.
        head ([`EagleDraftModel`]): The head as it drafts.
        is_tree (`bool`): Whether the target verifies trees; otherwise chains only.
        written (`Mapping[str, Any]`, *optional*): Options of this call; the head's own hold for the others.
    """
    options = DraftOptions.from_generation_config(draft.generation_config, head.device.type, written)
    if not is_tree and options.draft_tree not in ("chain", "auto"):
        logger.warning_once(
            f"{type(model).__name__} verifies chains only, as its layers take no mask per node: the draft proposes "
            "chains. `draft.generation_config.draft_tree = 'chain'` says so without this warning."
        )
    # P-EAGLE drafts chains whatever the options say.
    return options.as_chain() if not is_tree or draft.config.parallel_drafting else options


def open_target(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    draft: EagleDraftModel,
    max_nodes: int,
    is_tree: bool,
) -> Target:
    """
    Returns the target of a call, of the kind that it is.

    Args:
        model, input_ids, generation_config, model_kwargs:
            As `generate` prepares them; a static cache that it has made is replaced by one with room for a tree.
        draft ([`EagleDraftModel`]): Says which features to read.
        max_nodes (`int`): Nodes of the largest tree, the root included.
        is_tree (`bool`): Whether the target verifies trees; otherwise chains only.
    """
    name = cache_argument(model)
    plain_sizes = fixed_sizes(model_kwargs[name])
    model_kwargs[name] = with_room(model, model_kwargs[name], max_nodes)
    prompt_len = columns_of_prompt(input_ids, generation_config, model_kwargs)
    config = model.config.get_text_config(decoder=True)
    switch = RotarySwitch.on_the_way(config, prompt_len, generation_config.max_length)
    reader = FeatureReader(model, draft.config)
    call = None
    if is_tree and switch is None and not reader.has_hook:
        call = compiled_call(model, model_kwargs, generation_config)
    if call is None:  # a compiled forward does not call hooks
        reader.hook_layers()
    arguments = (model, generation_config, model_kwargs, reader, plain_sizes)
    if call is not None:
        return CompiledTarget(*arguments, call=call, max_nodes=max_nodes)
    if is_tree and switch is not None:
        return SwitchingTarget(*arguments, switch=switch)
    if is_tree:
        return (CPUTarget if CPUTarget.suits(model) else Target)(*arguments)
    if is_recurrent(model, is_static=capacity(model_kwargs[name]) is not None):
        return RecurrentTarget(*arguments) if switch is None else SwitchingRecurrentTarget(*arguments, switch=switch)
    return ChainTarget(*arguments) if switch is None else SwitchingChainTarget(*arguments, switch=switch)


def open_drafter(head: EagleDraftModel, options: DraftOptions, target: Target, synced_gpus: bool) -> Drafter:
    """
    Returns the drafter of a call.

    Args:
        head ([`EagleDraftModel`]): The head as it drafts, from [`align_draft`].
        options ([`DraftOptions`]): The shape of the trees.
        target ([`Target`]): Lends its embedding and `lm_head`.
        synced_gpus (`bool`): Whether other ranks take part in every forward of the target.
    """
    # Synced ranks draft on their own, without waiting for the others.
    embed_tokens = lent_embedding(target.model, head.device, head.dtype, gathered=synced_gpus)
    lm_head = lent_lm_head(target.model, head.device, gathered=synced_gpus)
    return choose_drafter(head, options, embed_tokens, lm_head, *target.compiling())


def situation_of(target: Target, batch_size: int) -> tuple:
    """Returns what costs and confidence depend on, beside the pair: device, dtype, rows, sampling, compilation."""
    model, do_sample = target.model, target.generation_config.do_sample
    return str(model.device), model.dtype, batch_size, do_sample, target.compiling()[0] is not None


def open_policy(
    draft: EagleDraftModel, options: DraftOptions, target: Target, situation: tuple
) -> FixedSize | AutoSize:
    """
    Returns what sizes the trees of a call, with what earlier calls have learned.

    Args:
        draft ([`EagleDraftModel`]): The head as the user has it, with which is kept what was learned about it.
        options ([`DraftOptions`]): The shape of the trees.
        target ([`Target`]): The target.
        situation (`tuple`): From [`situation_of`].
    """
    if options.draft_tree != "auto":
        return FixedSize(options.draft_threshold)
    *_, batch_size, _, is_compiled = situation
    warms_up = is_compiled or loads_kernels(target.model)
    unknown = AutoSize(PairCosts(StepCosts(batch_size)), first_plain_steps=2 if warms_up else 1)
    return known_size(draft, target.model, situation, unknown)


def open_lookup(options: DraftOptions, rows: RowsOfCache, replaces_tree: bool) -> Retrieval | None:
    """
    Returns what looks up how the text may go on, `None` where nobody has asked for it.

    Args:
        options ([`DraftOptions`]): Say how many tokens to look up.
        rows ([`RowsOfCache`]): Knows the text, that of earlier calls on the same cache included.
        replaces_tree (`bool`): Whether looked-up paths take the place of trees.
    """
    if not options.draft_retrieval:
        return None
    return Retrieval(options.draft_retrieval, rows.known_text()[:, :-1].tolist(), replaces_tree)


def open_chooser(
    text: Text,
    processors: LogitsProcessorList,
    generation_config: GenerationConfig,
    records: ScoreRecords,
    logits: torch.Tensor,
    rows_may_run_ahead: bool,
) -> Chooser:
    """
    Returns the chooser that is exact for this call, and the faster one where both are.

    Args:
        text, processors, generation_config, records: As for the choosers.
        logits (`torch.Tensor` of shape `(batch_size, 1, vocab_size)`): Logits of the prefill.
        rows_may_run_ahead (`bool`): Whether rows of a batch may have different lengths for a while.
    """
    do_sample, (batch_size, _, vocab_size) = bool(generation_config.do_sample), logits.shape
    is_prefix_free = all(type(processor) in PREFIX_FREE_PROCESSORS for processor in processors)
    is_known = not do_sample or SamplingNoise.is_known(logits.device)
    if is_prefix_free and is_known and text.stops_row_wise and (batch_size == 1 or rows_may_run_ahead):
        noise = SamplingNoise(batch_size, vocab_size, logits.device) if do_sample else None
        # For a single row, processing the nodes of one path takes a small part of what all nodes take.
        kind = PathChooser if batch_size == 1 and reads_freely(logits.device) else NodeChooser
        return kind(text, processors, records, noise)
    return TokenChooser(text, processors, records, do_sample, vocab_size)
