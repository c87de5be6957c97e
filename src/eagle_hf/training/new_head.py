"""A new head that fits a target."""

from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_eagle import EagleConfig
from ..head.modeling_eagle import EagleDraftModel
from ..hub_names import hub_id
from ..target.config import TargetConfig
from ..target.modules import embedding_rows, lm_head_rows
from .vocabulary import cut_vocabulary


def new_head(
    target: PreTrainedModel, draft_vocabulary: torch.Tensor | None = None, eagle_version: int = 3, **fields: Any
) -> EagleDraftModel:
    """
    Returns a head with one layer of the target's kind. Its layers are random; its `lm_head` starts as the target's
    rows, which is closer than noise (EAGLE-3), or uses the target's (EAGLE-1).

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        draft_vocabulary (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*):
            Target ids that the head can draft, ascending; the whole vocabulary by default.
        eagle_version (`int`, *optional*, defaults to 3): 1 for EAGLE-1 and EAGLE-2 heads, 3 for EAGLE-3 heads.
        fields: Fields of [`EagleConfig`] other than what follows from the target, such as `intermediate_size`.

    Raises:
        `ValueError`: if the fields contradict each other, or the target is too shallow for the default feature layers.
    """
    config = TargetConfig(target.config)
    read = {
        "vocab_size": lambda: config.vocab_size,
        "draft_vocab_size": lambda: config.vocab_size if eagle_version == 3 else None,
        "hidden_size": lambda: config.hidden_size,
        "target_hidden_size": lambda: config.hidden_size,
        "intermediate_size": lambda: config.intermediate_size,
        "num_attention_heads": lambda: config.num_attention_heads,
        "num_key_value_heads": lambda: config.num_key_value_heads,
        "head_dim": lambda: config.head_dim,
        "rms_norm_eps": lambda: config.norm_eps,
        "max_position_embeddings": lambda: config.num_positions or EagleConfig.max_position_embeddings,
        "base_model_name_or_path": lambda: hub_id(config.name_or_path),
    }
    # What is given need not be in the target's configuration.
    settings = {name: of_target() for name, of_target in read.items() if name not in fields}
    settings |= config.special_token_ids
    head = EagleDraftModel(EagleConfig(eagle_version=eagle_version, **(settings | fields)))
    ids = head.config.resolve_feature_layer_ids(config.num_layers)  # named now: engines need them in the file
    head.config.feature_layer_ids = ids if eagle_version == 3 else head.config.feature_layer_ids
    rows = lm_head_rows(target) if head.lm_head is not None or draft_vocabulary is not None else None
    if head.lm_head is not None and rows is not None and rows.shape == head.lm_head.weight.shape:
        head.lm_head.weight.data.copy_(rows)
    if head.embed_tokens is not None:
        embeddings = embedding_rows(target, config.vocab_size)
        if embeddings.shape == head.embed_tokens.weight.shape:
            head.embed_tokens.weight.data.copy_(embeddings)
    if draft_vocabulary is not None and len(draft_vocabulary) < config.vocab_size:
        head = cut_vocabulary(head, draft_vocabulary, rows)
    return head
