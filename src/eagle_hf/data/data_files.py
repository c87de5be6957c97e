"""Reading rows of data from whatever holds them: files, folders, datasets, iterables."""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


Data = str | Path | Iterable[Any]

_OPENERS: dict[str, Callable[..., Any]] = {
    f"{kind}{packed}": opener
    for kind in (".jsonl", ".json")
    for packed, opener in (("", open), (".gz", gzip.open), (".xz", lzma.open))
}
# What makes a JSON object a row, not the holder of a list of rows.
_FIELDS = {"messages", "conversations", "conversation", "prompt", "prompt_ids", "text", "turns"}


class MissingDatasets(ImportError):
    """The optional package `datasets` is needed and not installed."""


def read_data(data: Data, split: str = "train") -> Iterator[tuple[str, Any]]:
    """
    Reads rows from anything that [`~eagle_hf.training.RowReader`] takes, without looking into them.

    Yields:
        `tuple[str, Any]`: Where the row stands, and the row; a string that says why, where there is no row.
    """
    if isinstance(data, str | Path):
        yield from _read_name(data, split)
    elif isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        for item in data:
            yield from _read_name(item, split)
    elif isinstance(data, Mapping):  # a `DatasetDict`
        if split not in data:
            raise ValueError(f"There is no split {split!r} in the data, only {', '.join(map(repr, data))}: choose one.")
        yield from read_data(data[split], split)
    elif isinstance(data, Iterable):
        for number, row in enumerate(data):
            yield f"row {number}", "not an object" if isinstance(row, str) else row
    else:
        raise ValueError(f"Data is a {type(data).__name__}; a file, folder, dataset or iterable of rows is expected.")


def _read_name(name: str | Path, split: str) -> Iterator[tuple[str, Any]]:
    path = Path(name)
    if path.is_dir():
        yield from _read_folder(path, split)
    elif path.is_file():
        yield from _read_file(path)
    elif isinstance(name, Path) or _opener(path) is not None:
        raise FileNotFoundError(f"There is no file or folder {path}.")
    else:
        yield from read_data(_datasets(name).load_dataset(name, split=split), split)


def _read_folder(path: Path, split: str) -> Iterator[tuple[str, Any]]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        yield from read_data(_datasets(path).load_from_disk(str(path)), split)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and _opener(file) is not None)
    # Folders of JSON lines often hold descriptions of themselves beside them, as JSON.
    files = [file for file in files if not _is_whole(file)] or files
    if not files:
        raise ValueError(f"No data in {path}: files {', '.join(_OPENERS)} are expected, or a dataset of `datasets`.")
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    opener = _opener(path)
    if opener is None:
        kind = path.suffix.removeprefix(".")
        kind = {"arrow": "arrow", "csv": "csv", "parquet": "parquet"}.get(kind, "...")
        raise ValueError(
            f"{path} is of an unknown kind: {', '.join(_OPENERS)} are read. `datasets` reads many more, and converts "
            f"them: datasets.load_dataset({kind!r}, data_files={path.name!r}, split='train').to_json('data.jsonl')"
        )
    try:
        with opener(path, "rb") as file:
            if _is_whole(path):
                yield from _read_whole(path, file.read())
                return
            for number, line in enumerate(file, start=1):
                yield f"{path}, line {number}", _parse(line)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is corrupt or cut short ({error}). Fetch or write it again.") from error


def _is_whole(path: Path) -> bool:
    """Checks whether a file is one JSON value, not one per line (which some are that are called so)."""
    return path.name.partition(".jsonl")[1] == ""


def _read_whole(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a JSON file: a list of them, an object that holds the list, or one per line after all."""
    lines = content.splitlines()
    first = _parse(lines[0]) if lines else "an empty line"
    if isinstance(first, dict) and any(line.strip() for line in lines[1:]):
        yield from ((f"{path}, line {number}", _parse(line)) for number, line in enumerate(lines, start=1))
        return
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither one JSON value nor one per line: {error}.") from error
    if isinstance(value, dict):
        lists = [held for held in value.values() if isinstance(held, list) and held and isinstance(held[0], dict)]
        value = [value] if value.keys() & _FIELDS or len(lists) != 1 else lists[0]
    if not isinstance(value, list):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}. A list of rows is expected.")
    for number, row in enumerate(value):
        yield f"{path}, row {number}", "not an object" if isinstance(row, str) else row


def _parse(line: bytes) -> Any:
    """Returns a row, or why the line holds none."""
    line = line.removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        return "an empty line"
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except json.JSONDecodeError:
        return "not JSON"
    return "not an object" if isinstance(row, str) else row


def _opener(path: Path) -> Callable[..., Any] | None:
    return next((opener for suffix, opener in _OPENERS.items() if path.name.endswith(suffix)), None)


def _datasets(name: str | Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDatasets(
            f"{name} is no file of JSON lines, and reading it as a dataset needs `datasets`: "
            "pip install 'eagle-hf[train]'"
        ) from error
    return datasets


def name_of(data: Data) -> str:
    """Returns what data is called in messages."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        return ", ".join(map(str, data))
    return f"the data ({type(data).__name__})"
