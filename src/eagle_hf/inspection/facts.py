"""Describes a head without its target."""

import os
from dataclasses import dataclass
from typing import Any

from ..checkpoints import read_checkpoint
from ..head.modeling_eagle import EagleDraftModel


@dataclass(frozen=True)
class HeadFacts:
    """
    A head in numbers.

    Args:
        source (`str`): File of the weights.
        layout (`str`): Which published layout it is in.
        version (`str`): EAGLE-1 (which is EAGLE-2 as well: they differ in the tree only) or EAGLE-3.
        parameters (`int`): Number of weights.
        num_bytes (`int`): Memory that they take.
        dtype (`str`): Their dtype.
        sizes (`dict`): Widths, heads, layers and vocabularies.
        decisions (`dict[str, str]`): How the head is read, as far as heads differ in it.
        base_model (`str`, *optional*): The target that the repository names.
    """

    source: str
    layout: str
    version: str
    parameters: int
    num_bytes: int
    dtype: str
    sizes: dict[str, Any]
    decisions: dict[str, str]
    base_model: str | None


def read_facts(repo: str | os.PathLike, **hub_kwargs: Any) -> tuple[EagleDraftModel, HeadFacts]:
    """Loads a head and describes it; `hub_kwargs` as in [`EagleDraftModel.from_pretrained`]."""
    checkpoint = read_checkpoint(repo, **hub_kwargs)
    draft = EagleDraftModel.from_pretrained(repo, **hub_kwargs).eval()
    config = draft.config
    tensors = [*draft.parameters(), *draft.buffers()]
    sizes = {
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "hidden size of the target": config.target_hidden_size,
        "MLP": config.intermediate_size,
        "attention heads": config.num_attention_heads,
        "key/value heads": config.num_key_value_heads,
        "head size": config.head_dim,
        "vocabulary": config.vocab_size,
        "draft vocabulary": config.draft_vocab_size or config.vocab_size,
    }
    return draft, HeadFacts(
        source=str(checkpoint.source),
        layout="; ".join(checkpoint.decisions),
        version="EAGLE-3" if config.eagle_version == 3 else "EAGLE-1 or EAGLE-2",
        parameters=draft.num_parameters(),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        dtype=str(draft.dtype).removeprefix("torch."),
        sizes=sizes,
        decisions=_decisions(draft),
        base_model=config.base_model_name_or_path,
    )


def _decisions(draft: EagleDraftModel) -> dict[str, str]:
    config = draft.config
    features = "hidden states 2, n // 2 and n - 3 of a target of n layers (the authors' choice)"
    if config.feature_layer_ids is not None:
        features = (
            f"hidden states {config.feature_layer_ids} (0 is the embedding, -1 the last one after the final norm)"
        )
    rope = dict(config.rope_parameters or {})
    decisions = {
        "features": features,
        "rotary embedding": f"{rope.pop('rope_type', 'default')}, " + ", ".join(f"{k} {v}" for k, v in rope.items()),
        "embedding": "its own" if draft.embed_tokens is not None else "the target's",
        "lm_head": "its own" if draft.lm_head is not None else "the target's",
        "biases": ", ".join(n for n in ("fc_bias", "qkv_bias", "o_bias", "mlp_bias") if getattr(config, n)) or "none",
    }
    if config.eagle_version == 3:
        norms = [name for name in ("fc_norm", "norm_before_fc", "qk_norm") if getattr(config, name)]
        decisions |= {
            "additional norms": ", ".join(norms) or "none",
            "residual": "the normalised feature" if config.norm_before_residual else "the raw feature",
            "next step takes": "the output after the norm" if config.norm_output else "the output before the norm",
        }
    return decisions
