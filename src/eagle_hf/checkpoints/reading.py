"""From a repository or folder to a checked configuration and checked tensors."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from ..hub.training_facts import FILE as TRAINING_RECORD
from . import (
    angelslim,
    deepseek,
    deepspec,
    modelopt,
    nemo_automodel,
    own,
    parallel_eagle,
    safeailab,
    specforge,
    speculators,
)
from .files import find_file, read_json, read_text, read_weights
from .head import Head
from .other_drafters import recognise
from .sources import NotReached
from .validation import check_finite, check_size, check_vocabulary


logger = logging.get_logger(__name__)

# Tried in this order: what is particular first, the names that most engines share last.
_LAYOUTS = (
    own, speculators, deepspec, nemo_automodel, parallel_eagle, deepseek, angelslim, specforge, safeailab, modelopt,
)  # fmt: skip


@dataclass(frozen=True)
class EagleCheckpoint:
    """
    A head as read from a repository.

    Args:
        config ([`EagleConfig`]): Its configuration.
        weights (`dict[str, torch.Tensor]`): Its tensors, under the names of [`EagleDraftModel`].
        generation_config ([`~transformers.GenerationConfig`], *optional*): How to draft, where the repository says so.
        source (`pathlib.Path`): The weight file.
        decisions (`list[str]`): The layout that it is in, and what was decided where the repository leaves room.
        training_record (`str`, *optional*): Content of `training.json`, in our own layout.
    """

    config: EagleConfig
    weights: dict[str, torch.Tensor]
    generation_config: GenerationConfig | None
    source: Path
    decisions: list[str]
    training_record: str | None = None


def read_checkpoint(
    repo: str | os.PathLike,
    config: EagleConfig | None = None,
    overrides: dict[str, Any] | None = None,
    allow_non_finite: bool = False,
    **hub_kwargs: Any,
) -> EagleCheckpoint:
    """
    Reads a head in any layout that is known here.

    Args:
        repo (`str` or `os.PathLike`): Repository id on the Hub, or a folder.
        config ([`EagleConfig`], *optional*): Used instead of what the repository says.
        overrides (`dict`, *optional*): Fields of the configuration that are used instead of what the repository says.
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
    _refuse_other_drafters(repo, config_dict, {})  # before weights are downloaded, which may be a whole target's
    weights, source = read_weights(repo, **hub_kwargs)
    overrides = overrides or {}
    try:
        head = _read_layout(repo, config_dict, weights, overrides)
    except StrictDataclassError as error:  # a field of another type
        raise ValueError(f"{config_path}: {error}") from error
    weights = head.weights
    config = config if config is not None else head.config
    if overrides:
        if "feature_layer_ids" in overrides:
            overrides = {"published_feature_layer_ids": None} | overrides
        config = EagleConfig.from_dict(config.to_dict() | overrides)
    logger.info(f"{repo} is a head in the layout {'; '.join(head.decisions)}. {config}")
    weights = check_vocabulary(config, weights, source)
    check_size(config, weights, source)
    if not allow_non_finite:
        check_finite(weights, source)
    generation_path = _find_if_there(repo, "generation_config.json", **hub_kwargs)
    generation_config = None
    if generation_path is not None:
        generation_config = GenerationConfig.from_dict(read_json(generation_path))
    record = None
    if own.matches(config_dict, {}):  # a file of this name in other repositories is not ours
        record_path = _find_if_there(repo, TRAINING_RECORD, **hub_kwargs)
        record = None if record_path is None else read_text(record_path)
    return EagleCheckpoint(config, weights, generation_config, source, head.decisions, record)


def _find_if_there(repo: str | os.PathLike, name: str, **hub_kwargs: Any) -> Path | None:
    try:
        return find_file(repo, name, **hub_kwargs)
    except NotReached:  # the head itself is in the cache, and few have this file
        return None


def _refuse_other_drafters(repo: str | os.PathLike, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    other = None if own.matches(config, weights) else recognise(config, weights)
    if other is not None:
        raise ValueError(f"{repo} is no EAGLE head: it {other}.")


def _read_layout(
    repo: str | os.PathLike, config: dict[str, Any], weights: dict[str, torch.Tensor], overrides: dict[str, Any]
) -> Head:
    _refuse_other_drafters(repo, config, weights)
    layout = next((layout for layout in _LAYOUTS if layout.matches(config, weights)), None)
    if layout is None:
        raise ValueError(
            f"{repo} is no EAGLE head in a layout that is known here; docs/checkpoints.md lists them. It holds "
            f"{len(weights)} tensors such as {sorted(weights)[:5]}."
        )
    if overrides.get("feature_layer_ids") and layout is not own:
        # The user's list takes the place of the repository's, so that the two need not agree.
        config = config | {"eagle_aux_hidden_state_layer_ids": list(overrides["feature_layer_ids"])}
    if overrides.get("use_fc") is False and layout is not own:
        config = config | {"eagle_config": (config.get("eagle_config") or {}) | {"use_aux_hidden_state": False}}
    head = layout.read(config, weights)
    name = layout.__name__.rpartition(".")[2]
    asked_for = [f"{field}={value!r} as asked for" for field, value in overrides.items()]
    return replace(head, decisions=[f"`{name}`", *head.decisions, *asked_for])
