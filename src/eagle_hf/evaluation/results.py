"""The file of a result: JSON that people can read too, a line per record."""

import json
import os
from pathlib import Path
from typing import Any


FORMAT = "eagle_hf benchmark, version 1"


def save_result(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result; the file is replaced when the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {name: value for name, value in result.items() if name not in ("rows", "records")}
    text = json.dumps(head, indent=2)[:-2]
    for name in ("rows", "records"):
        lines = ",\n    ".join(json.dumps(item) for item in result[name])
        text += f',\n  "{name}": [\n    {lines}\n  ]'
    beside = path.with_name(path.name + ".new")
    beside.write_text(text + "\n}\n", encoding="utf-8")
    os.replace(beside, path)


def load_result(path: str | Path) -> dict[str, Any]:
    """
    Reads a result.

    Args:
        path (`str` or `Path`): The file, or the folder that `eagle-hf bench --output` wrote.

    Raises:
        `OSError`: if there is no such file.
        `ValueError`: if it is no result of a benchmark, or one of another version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): a result of `eagle-hf bench` is expected.") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else None
        raise ValueError(f"{path} is no result of `eagle-hf bench` of this version: its format is {found!r}, "
                         f"expected {FORMAT!r}.")  # fmt: skip
    return result
