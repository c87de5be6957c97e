"""
Finding and reading the files of a repository or folder. They come from strangers: nothing in them is ever executed,
nothing outside the repository is read, and nothing larger than the files themselves is ever allocated.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from . import sources


SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

MAX_JSON_BYTES = 64 * 2**20  # a configuration has a few kilobytes, an index of many shards a few megabytes


def find_file(repo: str | os.PathLike, name: str, **hub_kwargs: Any) -> Path | None:
    """
    Returns the path of a file of a repository or folder, downloaded if needed; `None` if there is none of this name.

    Raises:
        [`~eagle_hf.checkpoints.sources.NotReached`]: if it is not in the cache and the Hub is away.
        `OSError`: if `repo` can only be a folder and there is none, or the file is a link that leaves the folder.
    """
    path = sources.find_file(repo, name, **hub_kwargs)
    folder = Path(sources.expand(repo))
    if path is not None and folder.is_dir():
        _check_link(path, folder.resolve())
    return path


def _check_link(path: Path, folder: Path) -> None:
    # A cloned repository may hold links to anywhere. Those of the Hub's cache lead from `snapshots` to `blobs`.
    file = path.resolve()
    blobs = [parent.parent / "blobs" for parent in (folder, *folder.parents) if parent.name == "snapshots"]
    if not any(file.is_relative_to(root) for root in (folder, *blobs)):
        raise OSError(
            f"{path} is a link to {file}, outside the folder of the head, and is not followed, for safety. If the "
            "link is yours, put the file itself into the folder."
        )


def read_json(path: Path) -> dict[str, Any]:
    """
    Reads a JSON object.

    Raises:
        `OSError`: if the file is no JSON object, or far too large for one; names the file.
    """
    _check_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OSError(f"{path} is not valid JSON ({error}).{_lfs_hint(path)}") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def read_text(path: Path) -> str:
    """
    Reads a text, whatever is in it.

    Raises:
        `OSError`: if the file is far too large for one; names the file.
    """
    _check_size(path)
    return path.read_text(encoding="utf-8", errors="replace")


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise OSError(f"{path} has {size} bytes, more than any configuration: at most {MAX_JSON_BYTES} are read.")


def read_weights(repo: str | os.PathLike, **hub_kwargs: Any) -> tuple[dict[str, torch.Tensor], Path]:
    """
    Reads all weights: safetensors where there are any, else PyTorch files, these with `weights_only=True` and nothing
    else. Files are mapped, not copied: memory is used once, as the tensors are first read.

    Returns:
        The tensors by name, and the file (or index of files) they came from.

    Raises:
        `OSError`: if there are no weights, or a file is truncated, damaged, or a Git LFS pointer; names the file. If
            the Hub was not reached, the error says that.
    """
    away = None
    for name, index_name in ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX)):
        try:
            if (path := find_file(repo, name, **hub_kwargs)) is not None:
                return _read_weight_file(path), path
            if (index_path := find_file(repo, index_name, **hub_kwargs)) is not None:
                return _read_shards(repo, index_path, **hub_kwargs), index_path
        except sources.NotReached as error:  # the cache may hold the other kind
            away, hub_kwargs = away or error, hub_kwargs | {"local_files_only": True}
    if away is not None:
        raise away
    raise OSError(f"{repo} has neither {SAFETENSORS} nor {PICKLE}: there are no weights to load.")


def _read_shards(repo: str | os.PathLike, index_path: Path, **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise OSError(f"{index_path} has no `weight_map` that says in which file each tensor is.")
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        # Only plain names: a path could lead out of the repository.
        shard_path = find_file(repo, shard, **hub_kwargs) if Path(shard).name == shard else None
        if shard_path is None:
            raise OSError(f"{index_path} names the weight file {shard!r}, which is not in {repo}.")
        tensors = _read_weight_file(shard_path)
        if twice := sorted(weights.keys() & tensors.keys()):
            raise OSError(f"{shard_path} holds tensors that another file of {repo} holds as well: {twice[:5]}.")
        weights.update(tensors)
    if absent := sorted(weight_map.keys() - weights.keys()):
        raise OSError(f"{index_path} lists {len(absent)} tensors that are in none of its files, such as {absent[:5]}.")
    return weights


def _read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        size = path.stat().st_size
        raise OSError(f"{path} ({size} bytes) cannot be read as weights: {error}.{_lfs_hint(path)}") from error
    except Exception as error:  # `pickle.UnpicklingError` and what damaged pickles raise; the cause is kept
        raise OSError(
            f"{path} is not a file of plain tensors, and nothing else is read from it, for safety: {error}."
            f"{_lfs_hint(path)}"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise OSError(f"{path} does not hold a dictionary of tensors.")
    _check_plain(weights, path)
    return weights


def _read_pickle(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)  # the format of `torch.save` since 1.6; only that can be mapped
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its content is compressed, which `torch.save` never does")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_plain(weights: dict[str, torch.Tensor], path: Path) -> None:
    # A pickle can describe tensors that are sparse, quantised, or repeat a few bytes to any size.
    size = path.stat().st_size
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise OSError(
                f"{path}: `{name}` is no plain dense tensor (dtype {tensor.dtype}, layout {tensor.layout}). Heads are "
                "read from dense tensors only: save it dense and not quantised."
            )
        if tensor.numel() * tensor.element_size() > size:
            raise OSError(
                f"{path} ({size} bytes) claims that `{name}` has shape {tuple(tensor.shape)} in {tensor.dtype}, more "
                "than the whole file holds. The file is damaged, or made to exhaust memory."
            )


def _lfs_hint(path: Path) -> str:
    with open(path, "rb") as file:
        is_pointer = file.read(40).startswith(b"version https://git-lfs")
    return (
        " It is a Git LFS pointer, not the file itself: run `git lfs pull`, or `hf download` the repository."
        if is_pointer
        else ""
    )
