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
from transformers.utils import logging

from ..cache.keeping import capacity
from ..draft_options import DraftOptions
from ..fast.compiled_target import columns_of_text, with_room
from ..head.modeling_eagle import EagleDraftModel
from ..target.features import FeatureReader
from ..target.forward import cache_argument
from ..target.probe import can_verify_trees
from ..target.target import Target
from ..tree import DraftTree
from ..versions import CACHE
from .choosing import Records, make_selector
from .converted_heads import align_draft
from .output import EagleGenerateOutput, History
from .pairing import check_cache
from .proposals import Proposals
from .records import LayerRecords
from .text import Sequences


logger = logging.get_logger(__name__)


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
    Generate with draft trees. The text is that of plain `generate`: greedy token for token, sampling seed for seed.

    Every step works on the newest token of each row, the root, which is in no cache yet:

    ```text
    draft   grow a tree below the root from the features known so far         Proposals.next_tree
    target  one forward over all nodes, each seeing its own path              Target.verify
    walk    the target's own next tokens, as long as the tree contains them   select
    cache   keep the nodes of that path, drop the others                      Target.keep
    draft   learn the true features of the kept nodes                         Proposals.read_accepted
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
    cache_name = cache_argument(model)
    is_tree = verifies_trees(model, input_ids, generation_config, model_kwargs)
    head = align_draft(model, draft)
    options = DraftOptions.from_generation_config(draft.generation_config, head.device.type, written)
    if not is_tree and options.draft_tree not in ("chain", "auto"):
        logger.warning_once(
            f"{type(model).__name__} verifies chains only, as its layers take no mask per node: the draft proposes "
            "chains. `draft.generation_config.draft_tree = 'chain'` says so without this warning."
        )
    if not is_tree or draft.config.parallel_drafting:  # P-EAGLE drafts chains whatever the options say
        options = options.as_chain()

    model_kwargs[cache_name] = with_room(model, model_kwargs[cache_name], options.max_nodes)
    sequences = Sequences(input_ids, stopping_criteria, generation_config, streamer)
    target = Target(
        model, generation_config, model_kwargs, FeatureReader(model, draft.config), is_tree, options.max_nodes
    )
    proposals = Proposals(draft, head, options, target, sequences, synced_gpus)
    records = Records(generation_config, sequences.batch_size)
    layer_records = LayerRecords(generation_config)
    history = History(sequences.batch_size, keeps_trees=options.output_draft_trees)

    with target:
        logits = target.prefill(input_ids)
        layer_records.add_prompt(target.prompt_outputs, target.num_prompt_columns)
        selector = make_selector(
            sequences, logits_processor, generation_config, records, logits, target.rows_may_run_ahead
        )
        selector.select(DraftTree.root_only(input_ids.new_zeros(len(input_ids))), logits)
        if not sequences.done or target.is_users_cache:
            proposals.read_prompt()
        while model._has_unfinished_sequences(sequences.done, synced_gpus, device=input_ids.device):
            if sequences.done:  # but other ranks are not
                target.idle(sequences.newest())
                continue
            open_rows = sequences.open_rows()
            tree = proposals.next_tree(open_rows, selector.noise_ahead)
            verified = target.verify(tree)
            paths = selector.select(verified.tree, verified.logits)
            history.add(verified.tree, paths, open_rows)
            layer_records.add(verified.layer_outputs, paths)
            features = target.keep(verified, paths)
            if selector.draft_is_broken:
                proposals.drafter.stop()
            if not sequences.done or target.outlives_generate:
                proposals.read_accepted(features, paths, open_rows)
        if target.outlives_generate and (late := selector.rows_without_last_token()):
            verified = target.verify(DraftTree.root_only(sequences.newest()))
            paths = [[0] if row in late else [] for row in range(sequences.batch_size)]
            layer_records.add(verified.layer_outputs, paths)
            target.keep(verified, paths)
        elif not target.catch_up() and synced_gpus:  # another rank may have such rows, or lag behind
            target.idle(sequences.newest())
    selector.finish()
    proposals.finish()
    if target.outlives_generate:
        proposals.keep()

    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences.ids.clone()
    return EagleGenerateOutput(
        sequences=sequences.ids.clone(),
        scores=records.scores,
        logits=records.logits,
        attentions=layer_records.attentions,
        hidden_states=layer_records.hidden_states,
        **{CACHE: target.cache},
        acceptance_lengths=history.acceptance_lengths,
        target_forwards=target.num_forwards,
        draft_forwards=proposals.drafter.num_forwards,
        draft_trees=history.trees,
        tree_sizing=proposals.sizing,
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
