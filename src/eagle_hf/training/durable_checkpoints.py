"""
Checkpoints that a killed process cannot spoil.

A checkpoint is written into a folder beside its final place, flushed to the disk, marked as complete, and renamed:

```text
runs/head/.saving-checkpoint-500/checkpoint-500/...     being written
runs/head/checkpoint-500/... and checkpoint_complete.json      renamed: complete
```

Whatever happens in between, the checkpoints before it are whole, and what is not marked is not taken for one.
"""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

MARKER = "checkpoint_complete.json"
_NO_FLUSHING = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_STAGING_PREFIX = ".saving-"


def staging_folder(run_dir: str | os.PathLike, step: int) -> Path:
    """Returns where the checkpoint of a step is written, in the same file system as its final place."""
    return Path(run_dir) / f"{_STAGING_PREFIX}checkpoint-{step}"


def recover(run_dir: str | os.PathLike) -> None:
    """Puts in place what a killed process had completed but not renamed, and removes what it had not completed."""
    for folder in Path(run_dir).glob(f"{_STAGING_PREFIX}*"):
        for staged in folder.glob("checkpoint-*"):
            final = folder.parent / staged.name
            if find_problem(staged) is None and not final.exists():
                logger.info(f"Putting {final} in place, which was complete when its process ended.")
                os.replace(staged, final)
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, final: Path, facts: dict[str, Any]) -> None:
    """
    Marks a written checkpoint as complete and brings it to its place, at once.

    Args:
        staged (`pathlib.Path`): Folder with all files of the checkpoint.
        final (`pathlib.Path`): Its place. What is there is replaced.
        facts (`dict`): What resuming checks, such as the number of processes; the sizes of the files are added.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in files}
    marker = staged / MARKER
    marker.write_text(json.dumps(facts | {"files": sizes}, indent=2, sort_keys=True) + "\n")
    for path in [*files, marker, *{path.parent for path in [*files, marker]}]:
        _flush(path)
    if final.exists():
        replaced = staged.parent / "replaced"
        os.replace(final, replaced)
    os.replace(staged, final)
    _flush(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def complete_checkpoints(run_dir: str | os.PathLike) -> list[Path]:
    """Returns the complete checkpoints of a run, oldest first. Others are named in a warning and left alone."""
    complete, incomplete = [], []
    folders = [path for path in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2])):
        problem = find_problem(folder)
        complete.append(folder) if problem is None else incomplete.append(f"{folder} ({problem})")
    if incomplete:
        logger.warning(f"Skipping checkpoints that are not complete: {', '.join(incomplete)}.")
    return complete


def find_problem(checkpoint: str | os.PathLike) -> str | None:
    """Returns what is wrong with the files of a checkpoint; `None` if it is complete."""
    try:
        marker = json.loads((Path(checkpoint) / MARKER).read_text())
        sizes = marker["files"]
    except FileNotFoundError:
        return f"{MARKER} is missing, so that saving was not finished"
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        return f"{MARKER} cannot be read: {error}"
    for name, size in sizes.items():
        path = Path(checkpoint) / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def read_facts(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """
    Returns what a checkpoint says of itself.

    Raises:
        `ValueError`: if it is not complete; says why.
    """
    if (problem := find_problem(checkpoint)) is not None:
        raise ValueError(
            f"{checkpoint} is not a complete checkpoint of EagleTrainer: {problem}. Resume from another one, or with "
            "`resume_from_checkpoint=True` from the newest that is complete."
        )
    return json.loads((Path(checkpoint) / MARKER).read_text())


def rotate(run_dir: str | os.PathLike, limit: int | None, best: str | os.PathLike | None) -> None:
    """Removes the oldest complete checkpoints beyond `limit`; neither the newest nor the best."""
    checkpoints = complete_checkpoints(run_dir) if limit is not None and limit > 0 else []
    removable = [path for path in checkpoints[:-1] if best is None or path.name != Path(best).name]
    for path in removable[: max(len(checkpoints) - (limit or 0), 0)]:
        (path / MARKER).unlink()  # first, so that a half removed one is not taken for complete
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    """Brings a file or the names in a folder to the disk, where the system lets that be asked for."""
    is_folder = path.is_dir()
    try:
        # Windows flushes only what may be written, and opens no folders: its file system keeps a journal of names.
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except OSError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:  # shared and mounted folders often know no flushing
        if error.errno not in _NO_FLUSHING:
            raise
    finally:
        os.close(descriptor)
