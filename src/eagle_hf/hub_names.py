"""
Names of models: a repository on the Hub, which is worth writing into a file that others read, or a place on this
machine, which is of no use to them and stays private.
"""

import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]


# How the Hub's cache and `snapshot_download` name the folder of a repository: models--ORG--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"[\\/]models--(.+?)[\\/]snapshots[\\/][^\\/]+[\\/]?$")


def is_hub_id(name: str | os.PathLike | None) -> bool:
    """
    Checks whether a name is spelt like a repository (`org/name`, or `name` alone for old ones). Paths are not, whether
    of this system or another: `/a/b`, `./a`, `~/a`, `a/b/c`, `C:\\a`, `file:///a`. `runs/head` is: only the disk can
    tell, which [`hub_id`] asks. For names that the user has given as those of repositories.
    """
    if name is None:
        return False
    try:
        validate_repo_id(os.fspath(name))
    except HFValidationError:
        return False
    return True


def hub_id(name: str | os.PathLike | None) -> str | None:
    """
    Returns the repository that a model was loaded from, or `None` for what is, or may be, a path. For names that nobody
    has vouched for, such as `config.name_or_path`.

    Args:
        name (`str` or `os.PathLike`, *optional*): What the model was loaded by.

    A folder of the Hub's cache (`.../models--org--name/snapshots/...`) gives its repository. A name that exists as a
    file or folder here is a path, as it is for `from_pretrained`.
    """
    if name is None:
        return None
    name = os.fspath(name)
    if (cached := _CACHED.search(name)) is not None:
        name = cached.group(1).replace("--", "/")
        return name if is_hub_id(name) else None
    return name if is_hub_id(name) and not os.path.exists(name) else None
