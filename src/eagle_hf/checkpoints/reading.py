"""From a repository or folder to a checked configuration and checked tensors."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from . import own, safeailab
from .files import find_file, read_json, read_weights
from .validation import check_finite, check_size, check_vocabulary


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EagleCheckpoint:
    """
    A head as read from a repository.

    Args:
        config ([`EagleConfig`]): Its configuration.
        weights (`dict[str, torch.Tensor]`): Its tensors, under the names of [`EagleDraftModel`].
        generation_config ([`~transformers.GenerationConfig`], *optional*): How to draft, where the repository says so.
        source (`pathlib.Path`): The weight file.
        layout (`str`): Name of the layout that it is in.
    """

    config: EagleConfig
    weights: dict[str, torch.Tensor]
    generation_config: GenerationConfig | None
    source: Path
    layout: str


def read_checkpoint(
    repo: str | os.PathLike, config: EagleConfig | None = None, allow_non_finite: bool = False, **hub_kwargs: Any
) -> EagleCheckpoint:
    """
    Read a head in any layout that is known here.

    Args:
        repo (`str` or `os.PathLike`): Repository id on the Hub, or a folder.
        config ([`EagleConfig`], *optional*): Used instead of what the repository says.
        allow_non_finite (`bool`, *optional*, defaults to `False`): Whether NaN and infinite weights are let through.
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        `OSError`: if a file is missing or damaged.
        `ValueError`: if the layout is unknown, or the tensors contradict each other or the configuration.
    """
    config_path = find_file(repo, "config.json", **hub_kwargs)
    if config_path is None:
        raise OSError(f"{repo} has no config.json, so that it is no EAGLE head (nor any model of `transformers`).")
    config_dict = read_json(config_path)
    weights, source = read_weights(repo, **hub_kwargs)
    for layout in (own, safeailab):
        if layout.matches(config_dict, weights):
            try:
                found, weights = layout.read(config_dict, weights)
            except StrictDataclassError as error:  # a field of another type
                raise ValueError(f"{config_path}: {error}") from error
            layout_name = layout.__name__.rpartition(".")[2]
            logger.info(f"{repo} is a head in the layout `{layout_name}`: {found}")
            break
    else:
        raise ValueError(
            f"{repo} is no EAGLE head in a layout that is known here (our own, or SafeAILab's EAGLE-1 and EAGLE-3). "
            f"It holds {len(weights)} tensors such as {sorted(weights)[:5]}."
        )
    config = config if config is not None else found
    weights = check_vocabulary(config, weights, source)
    check_size(config, weights, source)
    if not allow_non_finite:
        check_finite(weights, source)
    generation_path = find_file(repo, "generation_config.json", **hub_kwargs)
    generation_config = None
    if generation_path is not None:
        generation_config = GenerationConfig.from_dict(read_json(generation_path))
    return EagleCheckpoint(config, weights, generation_config, source, layout_name)
