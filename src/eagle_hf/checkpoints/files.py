"""Finding and reading the files of a repository or folder. Nothing in a repository is ever executed."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file


SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def find_file(repo: str | os.PathLike, name: str, **hub_kwargs: Any) -> Path | None:
    """Path of a file of a repository or folder, downloaded if needed; `None` if there is none of this name."""
    path = cached_file(str(repo), name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    return None if path is None else Path(path)


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        `OSError`: if the file is no JSON object; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OSError(f"{path} is not valid JSON ({error}).{_lfs_hint(path)}") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def read_weights(repo: str | os.PathLike, **hub_kwargs: Any) -> tuple[dict[str, torch.Tensor], Path]:
    """
    Read all weights: safetensors where there are any, else PyTorch files, these with `weights_only=True` and nothing
    else.

    Returns:
        The tensors by name, and the file (or index of files) they came from.

    Raises:
        `OSError`: if there are no weights, or a file is truncated, damaged, or a Git LFS pointer; names the file.
    """
    for name, index_name in ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX)):
        if (path := find_file(repo, name, **hub_kwargs)) is not None:
            return _read_weight_file(path), path
        if (index_path := find_file(repo, index_name, **hub_kwargs)) is not None:
            weights = {}
            for shard in sorted(set(read_json(index_path).get("weight_map", {}).values())):
                shard_path = find_file(repo, shard, **hub_kwargs) if Path(shard).name == shard else None
                if shard_path is None:
                    raise OSError(f"{index_path} names the weight file {shard!r}, which is not in {repo}.")
                weights.update(_read_weight_file(shard_path))
            return weights, index_path
    raise OSError(f"{repo} has neither {SAFETENSORS} nor {PICKLE}: there are no weights to load.")


def _read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        size = path.stat().st_size
        raise OSError(f"{path} ({size} bytes) cannot be read as weights: {error}.{_lfs_hint(path)}") from error
    except Exception as error:  # `pickle.UnpicklingError` and what damaged pickles raise; the cause is kept
        raise OSError(
            f"{path} is not a file of plain tensors, and nothing else is read from it, for safety: {error}."
            f"{_lfs_hint(path)}"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise OSError(f"{path} does not hold a dictionary of tensors.")
    return weights


def _lfs_hint(path: Path) -> str:
    with open(path, "rb") as file:
        is_pointer = file.read(40).startswith(b"version https://git-lfs")
    return (
        " It is a Git LFS pointer, not the file itself: run `git lfs pull`, or `hf download` the repository."
        if is_pointer
        else ""
    )
