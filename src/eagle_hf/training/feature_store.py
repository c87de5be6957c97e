"""
Features computed once and read many times, where training is longer than an epoch or the target does not fit beside the
head.

```text
features/index.json                       settings, and size and checksum of every shard
features/features-00000.safetensors       3.input_ids, 3.loss_mask, 3.features, 3.last_hidden_states, ...
```

Stored are what the head reads and the target's last hidden states, from which its `lm_head` computes the logits: far
less than logits. Shards appear when they are complete, so that a run that was killed goes on after the last of them.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .frozen_target import FrozenTarget
from .packing_check import check_packing
from .run_identity import identity_of_data, identity_of_weights


logger = logging.get_logger(__name__)

INDEX = "index.json"
_PADDING = {"document_ids": -1}


def stored_bytes(num_tokens: int, num_features: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Returns the bytes that the features of so many tokens take on the disk, ids and masks left out."""
    return num_tokens * (num_features + 1) * hidden_size * dtype.itemsize


def write_features(
    target: FrozenTarget,
    samples: Sequence[dict[str, Any]],
    directory: str | os.PathLike,
    samples_per_shard: int = 256,
    dtype: torch.dtype | None = None,
    rendered_at: str | None = None,
) -> None:
    """
    Computes the features of all samples, one by one, and stores them. Goes on where it was interrupted.

    Args:
        target ([`FrozenTarget`]): The target.
        samples (sequence of `dict`):
            `input_ids` and `loss_mask` of shape `(seq_len,)`; in packed blocks `document_ids` and `position_ids` too.
        directory (`str` or `os.PathLike`): Where to store them.
        samples_per_shard (`int`, defaults to 256): Samples of one file.
        dtype (`torch.dtype`, *optional*): Of the stored features; by default that of the target.
        rendered_at (`str`, *optional*):
            The time that chat templates saw, to be recorded: [`recorded_time`] gives it to whoever makes the samples
            again.

    Raises:
        `ValueError`:
            if the folder holds features of another target, other layers or other samples, or if the target's logits are
            not `lm_head` of its last hidden states (soft caps, scales), so that they cannot be computed from them.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "version": 2,
        "target": identity_of_weights(target.model),
        "feature_layer_ids": target.feature_layer_ids,
        "dtype": str(dtype or target.model.dtype).removeprefix("torch."),
        "num_samples": len(samples),
        "samples_per_shard": samples_per_shard,
        "ids": identity_of_data(samples),
    }
    index: dict[str, Any] = {"settings": settings | {"rendered_at": rendered_at}, "shards": []}
    if (directory / INDEX).exists():
        index = _read_index(directory)
        _compare_settings(index["settings"], settings, directory)
    for number in tqdm(range(-(-len(samples) // samples_per_shard)), desc="Computing features", unit="shard"):
        if number < len(index["shards"]):
            continue
        tensors: dict[str, torch.Tensor] = {}
        for i in range(number * samples_per_shard, min((number + 1) * samples_per_shard, len(samples))):
            sample = {name: torch.as_tensor(values) for name, values in samples[i].items()}
            sample |= _compute(target, sample, dtype, is_checked=i == number * samples_per_shard)
            tensors |= {f"{i}.{name}": tensor.contiguous() for name, tensor in sample.items()}
        path = directory / f"features-{number:05d}.safetensors"
        save_file(tensors, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        index["shards"].append({"file": path.name, "bytes": path.stat().st_size, "checksum": _checksum(path)})
        (directory / INDEX).with_suffix(".tmp").write_text(json.dumps(index, indent=1))
        os.replace((directory / INDEX).with_suffix(".tmp"), directory / INDEX)


def recorded_time(directory: str | os.PathLike) -> str | None:
    """Returns the time that chat templates saw when the samples of stored features were made, if it is known."""
    path = Path(directory) / INDEX
    return _read_index(Path(directory))["settings"].get("rendered_at") if path.exists() else None


class FeatureStore(Dataset):
    """
    Samples with features, as [`EagleTrainer`] reads them; use [`pad_features`] as `data_collator`.

    Args:
        directory (`str` or `os.PathLike`): What [`write_features`] wrote.
        feature_layer_ids (`list[int]`): Which `hidden_states` of the target the head reads.

    Raises:
        `ValueError`: if the features are of other layers, or not complete.
        `OSError`: if a shard is missing or damaged; names the file. Checksums are compared when a shard is first read.
    """

    def __init__(self, directory: str | os.PathLike, feature_layer_ids: list[int]):
        self.directory = Path(directory)
        index = _read_index(self.directory)
        self.settings, self.shards = index["settings"], index["shards"]
        if self.settings["feature_layer_ids"] != feature_layer_ids:
            raise ValueError(
                f"{directory} holds features of `hidden_states` {self.settings['feature_layer_ids']}, but the head "
                f"reads {feature_layer_ids}. Compute the features of this head, in another folder."
            )
        self._per_shard = self.settings["samples_per_shard"]
        expected = -(-self.settings["num_samples"] // self._per_shard)
        if len(self.shards) < expected:
            raise ValueError(
                f"{directory} holds {len(self.shards)} of {expected} shards: computing was interrupted. Run it again, "
                "it goes on where it stopped."
            )
        for shard in self.shards:
            path = self.directory / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                size = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
                raise OSError(f"{path} is {size}, expected {shard['bytes']} bytes: compute the features again.")
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.settings["num_samples"]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        number = i // self._per_shard
        path = self.directory / self.shards[number]["file"]
        if number not in self._checked:
            if _checksum(path) != self.shards[number]["checksum"]:
                raise OSError(f"{path} is damaged (its checksum has changed): delete {INDEX} and compute again.")
            self._checked.add(number)
        with safe_open(path, "pt") as file:
            names = ("input_ids", "loss_mask", "features", "last_hidden_states", "document_ids", "position_ids")
            keys = set(file.keys())
            return {name: file.get_tensor(f"{i}.{name}") for name in names if f"{i}.{name}" in keys}


def pad_features(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collates samples of a [`FeatureStore`], padded on the right, where no token looks."""
    batch = {
        name: pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=_PADDING.get(name, 0))
        for name in samples[0]
    }
    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def _compute(
    target: FrozenTarget, sample: dict[str, torch.Tensor], dtype: torch.dtype | None, is_checked: bool
) -> dict[str, torch.Tensor]:
    inputs: dict[str, Any] = {
        name: sample[name][None].to(target.device) for name in ("input_ids", "position_ids") if name in sample
    }
    if "position_ids" in inputs:
        check_packing(target, num_blocks=1)
    features, last_hidden_states, logits = target.compute(inputs)
    if is_checked:
        again = target.lm_head(last_hidden_states)
        if not torch.allclose(again.float(), logits.float(), atol=1e-2, rtol=1e-2):
            raise ValueError(
                f"The logits of {type(target.model).__name__} are not its `lm_head` of its last hidden states (they "
                f"differ by up to {float((again - logits).abs().max()):.3g}), so that they cannot be computed from "
                "stored features. Train with the target in the same process instead."
            )
    dtype = dtype or target.model.dtype
    # What an EAGLE-1 head reads are the last hidden states themselves, and a file holds no tensor twice.
    return {
        "features": features[0].to(dtype).cpu().clone(),
        "last_hidden_states": last_hidden_states[0].to(dtype).cpu(),
    }


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    try:
        index = json.loads(path.read_text())
        return {"settings": index["settings"], "shards": index["shards"]}
    except FileNotFoundError as error:
        raise OSError(f"{directory} has no {INDEX}: it holds no features.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise OSError(f"{path} cannot be read ({error}): compute the features again, in an empty folder.") from error


def _compare_settings(found: dict[str, Any], wanted: dict[str, Any], directory: Path) -> None:
    if differing := [name for name in wanted if found.get(name) != wanted[name]]:
        pairs = "; ".join(f"{name}: {found.get(name)!r}, now {wanted[name]!r}" for name in differing)
        raise ValueError(f"{directory} holds other features ({pairs}). Use another folder, or remove this one.")


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
