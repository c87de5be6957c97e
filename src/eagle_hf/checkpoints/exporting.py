"""From a head to the files that an engine reads, or a refusal where the engine would compute something else."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from . import llama_cpp, modelopt, safeailab, specforge, speculators, vllm
from .export_target import find_target, settle_feature_layers
from .files import PICKLE, SAFETENSORS


logger = logging.get_logger(__name__)

# Several names for one layout, since people look for their engine as well as for who invented its files.
LAYOUTS = {
    "safeailab": safeailab,
    "speculators": speculators,
    "vllm": vllm,
    "sglang": specforge,
    "specforge": specforge,
    "modelopt": modelopt,
    "tensorrt-llm": modelopt,
    "llama.cpp": llama_cpp,
}


def export_checkpoint(
    draft: PreTrainedModel, directory: str | os.PathLike, layout: str, target: str | None = None
) -> Path:
    """
    Writes a head in the layout of an engine, in the dtype it has. `save_pretrained` writes our own layout.

    Args:
        draft ([`EagleDraftModel`]): The head.
        directory (`str` or `os.PathLike`): Where to write; made if it does not exist.
        layout (`str`):
            `"safeailab"` (the EAGLE authors' code), `"vllm"` or `"speculators"`, `"sglang"` or `"specforge"`,
            `"tensorrt-llm"` or `"modelopt"`, or `"llama.cpp"` (what its converter to GGUF reads).
        target (`str`, *optional*):
            Repository of the target, which some engines look up, or its folder: then its layers are counted, to check
            what the head reads, and files do not name it. Defaults to `draft.config.base_model_name_or_path`.

    Returns:
        `pathlib.Path`: The directory.

    Raises:
        `ValueError`: if the layout is unknown, or the engine would load the head and compute something else.

    Example:

    ```python
    >>> from eagle_hf import EagleConfig, EagleDraftModel
    >>> from eagle_hf.checkpoints import export_checkpoint

    >>> config = EagleConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4, vocab_size=512)
    >>> draft = EagleDraftModel(config)
    >>> export_checkpoint(draft, "head-for-sglang", "sglang")  # doctest: +SKIP
    ```
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Got layout {layout!r}, expected one of {', '.join(LAYOUTS)}.")
    target = target or draft.config.base_model_name_or_path
    weights = {name: tensor.detach().cpu() for name, tensor in draft.state_dict().items()}
    known = find_target(target)
    head = settle_feature_layers(draft.config, known.num_layers)
    config, weights = LAYOUTS[layout].write(head, weights, known)
    if known.name is None and "speculators_config" in config:
        logger.warning(
            "The exported head does not name its target, so that vLLM cannot find it on its own: "
            + ("no target is known" if target is None else f"{target} is a path, which nobody else can use")
            + ". Pass `target` (`--target`) with its repository on the Hub, or name the target when starting vLLM."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    if LAYOUTS[layout] is safeailab:
        torch.save(weights, directory / PICKLE)  # the only name that all of the authors' scripts look for
    else:
        save_file(weights, directory / SAFETENSORS, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    logger.info(f"{directory} holds the head in the layout `{layout}`.")
    return directory
