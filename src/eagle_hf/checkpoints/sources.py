"""Finds models in folders and in repositories on the Hub, and says what is wrong where nothing is found."""

import difflib
import os
from pathlib import Path
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    HfApi,
    constants,
    hf_hub_download,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from transformers.utils import cached_file

from ..hub_names import is_hub_id


def expand(source: str | os.PathLike) -> str:
    """Returns a repository id as it is, and a path with the home folder in place of `~`."""
    return os.path.expanduser(os.fspath(source))


# Of the HTTP library of the client, which is another in every major version.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


class NotReached(OSError):
    """The Hub was not reached, or must not be asked: nobody knows whether it has the file."""


def find_file(source: str | os.PathLike, name: str, **hub_kwargs: Any) -> Path | None:
    """
    Finds a file of a folder or repository, and downloads it if needed.

    Args:
        source (`str` or `os.PathLike`): Repository id on the Hub, or a folder.
        name (`str`): The file.
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Returns:
        `Path`, or `None` where there is no such file.

    Raises:
        [`NotReached`]: if the file is not in the cache and the Hub is away.
        `OSError`: if `source` can only be a folder and there is none, or the Hub does not show the repository.
    """
    check_folder(source)
    source = expand(source)
    path = "/".join(filter(None, [hub_kwargs.get("subfolder"), name]))
    if Path(source).is_dir():
        return file if (file := Path(source, path)).is_file() else None
    try:
        return Path(hf_hub_download(source, path, **{k: v for k, v in hub_kwargs.items() if k != "subfolder"}))
    except LocalEntryNotFoundError as error:
        place = {key: hub_kwargs.get(key) for key in ("revision", "cache_dir")}
        if try_to_load_from_cache(source, path, **place) is _CACHED_NO_EXIST:
            return None
        raise NotReached(_why_not_reached(source, path, bool(hub_kwargs.get("local_files_only")), error)) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, ValueError):  # gated, private, no such revision: `transformers` has the words
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        return None if found is None else Path(found)
    except HTTP_ERROR as error:  # an answer that breaks off
        raise NotReached(_why_not_reached(source, path, False, error)) from error


def list_files(source: str | os.PathLike, **hub_kwargs: Any) -> list[str]:
    """
    Returns the names of files in a folder (and in those directly inside) or repository, for a hint; none where the Hub
    does not tell.

    Args:
        source, hub_kwargs: As in [`find_file`].
    """
    folder = Path(expand(source), hub_kwargs.get("subfolder") or "")
    if folder.is_dir():
        found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in found)
    if hub_kwargs.get("local_files_only") or is_offline_mode():
        return []
    try:
        return HfApi().list_repo_files(
            os.fspath(source), revision=hub_kwargs.get("revision"), token=hub_kwargs.get("token")
        )
    except (OSError, HTTP_ERROR):
        return []


def check_folder(source: str | os.PathLike) -> None:
    """
    Checks that what can only be a folder is one. What may be the id of a repository is let through.

    Raises:
        `OSError`: if it is a file, or does not exist.
    """
    path = Path(expand(source))
    if path.is_dir():
        return
    if path.is_file():
        raise NotADirectoryError(f"{source} is a file. A folder that holds a model is expected, or a repository id.")
    if is_hub_id(source):
        return
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path.absolute().relative_to(parent).parts[0], names, n=1)
    hint = f" Did you mean {parent / close[0]}?" if close else ""
    raise FileNotFoundError(f"There is no folder {source}: {parent} exists, and nothing of this name in it.{hint}")


def _why_not_reached(source: str, path: str, local_files_only: bool, error: Exception) -> str:
    if local_files_only or is_offline_mode():
        switch = "`local_files_only=True`" if local_files_only else "`HF_HUB_OFFLINE`"
        return (
            f"{source} is no folder here, its {path} is not in the cache, and the Hub is not asked as {switch} is set. "
            f"Unset it, fetch the repository where there is a connection (`hf download {source}`), or pass a folder."
        )
    return (
        f"The Hub ({constants.ENDPOINT}) was not reached ({_innermost(error)}). The file {path} of {source} is not in "
        f"the cache, and {source} is no folder here. Try again when the Hub answers, or pass a folder."
    )


def _innermost(error: BaseException) -> str:
    """Returns the first cause of an error in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error).strip().partition("\n")[0] or type(error).__name__
