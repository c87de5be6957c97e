"""
The decoding loop: what runs in place of `transformers`' own assisted decoding when the assistant is an EAGLE draft.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..cache.fixed import capacity, columns_of_text
from ..drafting.auto_size import AutoSize, remember
from ..head.modeling_eagle import EagleDraftModel
from ..target.forward import cache_argument
from ..target.probe import can_verify_trees
from ..tree import DraftTree
from ..versions import CACHE
from .converted_heads import align_draft
from .kept_rows import RowsOfCache
from .opening import open_chooser, open_drafter, open_lookup, open_options, open_policy, open_target, situation_of
from .output import EagleGenerateOutput, History
from .pairing import check_cache
from .records import LayerRecords
from .scores import ScoreRecords
from .text import Text


def eagle_decoding(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: EagleDraftModel,
    written: Mapping[str, Any] | None = None,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> EagleGenerateOutput | torch.Tensor:
    r"""
    Generates with draft trees. The text is that of plain `generate`: greedy token for token, sampling seed for seed.

    Every step works on the newest token of each row, the root, which is in no cache yet:

    ```text
    grow     a tree below the root, from the features known so far                    drafter.grow
    verify   one forward of the target over all nodes, each seeing its own path       target.verify
    advance  the text by the target's own tokens, as long as the tree contains them   chooser.advance
    keep     the nodes of that path in the cache, drop the others                     target.keep
    learn    the true features of the kept nodes                                      drafter.read_accepted
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs:
            As `generate` prepares them for its decoding methods.
        synced_gpus (`bool`): Whether every rank runs as many forwards of the target as the slowest one, which targets
            with weights spread over ranks need (DeepSpeed ZeRO-3, FSDP).
        draft ([`EagleDraftModel`]): The draft head.
        written (`Mapping[str, Any]`, *optional*): Draft options of this call; the head's own hold for the others.

    Returns:
        [`EagleGenerateOutput`] or `torch.LongTensor` of shape `(batch_size, length)`
    """
    is_tree = verifies_trees(model, input_ids, generation_config, model_kwargs)
    head = align_draft(model, draft)
    options = open_options(model, draft, head, is_tree, written)

    text = Text(input_ids, stopping_criteria, generation_config, streamer)
    target = open_target(model, input_ids, generation_config, model_kwargs, draft, options.max_nodes, is_tree)
    situation = situation_of(target, text.batch_size)
    policy = open_policy(draft, options, target, situation)
    drafter = open_drafter(head, options, target, synced_gpus)
    rows = RowsOfCache(target, draft, text)
    records = ScoreRecords(generation_config, text.batch_size)
    layer_records = LayerRecords(generation_config)
    history = History(text.batch_size, keeps_trees=options.output_draft_trees)

    with target:
        # The prompt: a plain forward and a plain token, the walk through a tree of its last token alone.
        logits = target.prefill(input_ids)
        layer_records.add_prompt(target.prompt_outputs, target.num_prompt_columns)
        chooser = open_chooser(text, logits_processor, generation_config, records, logits, target.rows_may_run_ahead)
        chooser.advance(logits, DraftTree.root_only(input_ids.new_zeros(len(input_ids))))
        noise = chooser.noise_ahead if options.draft_coupling else None
        prompt = target.prompt_features(text.prompt_len)
        rows.begin(drafter, prompt)
        lookup = open_lookup(options, rows, replaces_tree=not is_tree)
        drafter.defer_prompt(prompt.states, text.ids[:, -prompt.seq_len :], prompt.positions, prompt.mask)

        while model._has_unfinished_sequences(text.done, synced_gpus, device=input_ids.device):
            if text.done:  # but other ranks are not
                target.idle(text.newest())
                continue
            open_rows = text.open_rows()
            max_depth = target.clamp_depth(text.max_draft_depth())
            plan = policy.plan(max_depth)
            tree = drafted = drafter.grow(text.newest(), max_depth, plan, noise)
            if lookup is not None:
                tree = lookup.extend(tree, text.new_tokens, open_rows, max_depth, plan)
            verified = target.verify(tree)
            paths = chooser.advance(verified.logits, verified.tree)
            features = target.keep(verified, paths)
            if not text.done or target.outlives_generate:
                counts = [len(path) if row in open_rows else 0 for row, path in enumerate(paths)]
                drafter.read_accepted(features, text.last(features.shape[1], counts), counts)
                policy.observe(plan, drafted, verified.tree.num_nodes, counts)
            history.add(verified.tree, paths, open_rows)
            layer_records.add(verified.layer_outputs, paths)

        if target.outlives_generate and (late := chooser.rows_without_last_token()):
            verified = target.verify(DraftTree.root_only(text.newest()))
            paths = [[0] if row in late else [] for row in range(text.batch_size)]
            layer_records.add(verified.layer_outputs, paths)
            target.keep(verified, paths)
        elif target.lags_behind:
            target.catch_up()
        elif synced_gpus:  # another rank may have such rows, or lag behind
            target.idle(text.newest())
    chooser.finish()
    if isinstance(policy, AutoSize):
        remember(draft, model, situation, policy)
    if target.outlives_generate:
        rows.keep(drafter)
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return text.ids.clone()
    return EagleGenerateOutput(
        sequences=text.ids.clone(),
        scores=records.scores,
        logits=records.logits,
        attentions=layer_records.attentions,
        hidden_states=layer_records.hidden_states,
        **{CACHE: target.cache},
        acceptance_lengths=history.acceptance_lengths,
        target_forwards=target.num_forwards,
        draft_forwards=drafter.num_forwards,
        draft_trees=history.trees,
        tree_sizing=policy.report() if isinstance(policy, AutoSize) else None,
    )


def verifies_trees(
    model: PreTrainedModel, input_ids: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> bool:
    """
    Checks that a call can be drafted, as far as it takes the cache that `generate` has prepared to know.

    Args:
        model, input_ids, generation_config, model_kwargs: As `generate` hands them to its decoding methods.

    Returns:
        `bool`: Whether the target verifies trees; otherwise chains only.

    Raises:
        `ValueError`: if the cache cannot drop rejected nodes, or the target can verify nothing.
    """
    cache = model_kwargs.get(cache_argument(model))
    check_cache(cache, columns_of_text(input_ids, generation_config, model_kwargs))
    return can_verify_trees(model, is_static=cache is not None and capacity(cache) is not None)
