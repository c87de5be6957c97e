"""The target that a head is exported for: what files may say of it, and what the export has to know."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

from ..configuration_eagle import EagleConfig
from ..hub_names import hub_id
from ..target.config import TargetConfig
from .files import SAFETENSORS, SAFETENSORS_INDEX, find_file, read_json


@dataclass(frozen=True)
class ExportTarget:
    """
    Describes the target that a head is written for.

    Args:
        name (`str`, *optional*): Its repository on the Hub. Never a path of this machine, which nobody else can use.
        num_layers (`int`, *optional*): How many decoder layers it has, where its configuration is on this machine.
        source (`str`, *optional*): Where its files are looked for: folder, or repository in the Hub's cache.
    """

    name: str | None
    num_layers: int | None
    source: str | None = None

    def embedding(self) -> torch.Tensor | None:
        """
        Returns the target's token embedding, of shape `(vocab_size, hidden_size)`, if its weights are on this machine.
        """
        if self.source is None:
            return None
        for path in _weight_files(self.source):
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.endswith(_EMBEDDINGS)]  # noqa: SIM118
                if len(names) == 1:
                    return file.get_tensor(names[0])
        return None


_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def _weight_files(source: str) -> list[Path]:
    try:
        if (single := find_file(source, SAFETENSORS, local_files_only=True)) is not None:
            return [single]
        index = find_file(source, SAFETENSORS_INDEX, local_files_only=True)
        shards = [] if index is None else set(read_json(index).get("weight_map", {}).values())
        found = [find_file(source, shard, local_files_only=True) for shard in sorted(shards)]
    except OSError:  # not here
        return []
    return [path for path in found if path is not None]


def find_target(target: str | None) -> ExportTarget:
    """
    Returns what is known of a target. Nothing is downloaded for it.

    Args:
        target (`str`, *optional*): Folder, or repository id, which is looked up in the Hub's cache only.
    """
    return ExportTarget(hub_id(target), None if target is None else _number_of_layers(target), target)


def _number_of_layers(target: str) -> int | None:
    try:
        return TargetConfig(AutoConfig.from_pretrained(target, local_files_only=True)).num_layers
    except (OSError, ValueError, KeyError):  # not here, or of a kind that only its own code knows
        return None


def settle_feature_layers(config: EagleConfig, num_target_layers: int | None) -> EagleConfig:
    """
    Returns the configuration with the hidden states that the head reads of this very target: a published list may turn
    out to be meant as it is once the target is known, and engines are given one list only.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
        num_target_layers (`int`, *optional*): Decoder layers of the target, where they are known.

    Raises:
        `ValueError`: if the target has no such hidden states.
    """
    if num_target_layers is None or config.feature_layer_ids is None:
        return config
    resolved = config.resolve_feature_layer_ids(num_target_layers)
    # -1 stays: it is the state after the final norm, and the number of the last layer stands for the one before it.
    ids = [-1 if listed == -1 else i for listed, i in zip(config.feature_layer_ids, resolved, strict=True)]
    if ids == config.feature_layer_ids:
        return config
    return EagleConfig.from_dict(config.to_dict() | {"feature_layer_ids": ids, "published_feature_layer_ids": None})
