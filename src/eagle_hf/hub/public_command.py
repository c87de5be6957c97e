"""A command line as others may read it: without the folders of this machine, and without tokens."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence

from ..hub_names import hub_id


# What these options take are names on the Hub, even where a folder here happens to have the same one.
_NAMES = {"base_model", "hub_model_id", "datasets", "license", "hub_revision", "revision", "target_revision"}
# What these take may be either. All others take paths, if anything with a slash.
_MODELS_AND_DATA = {"", "target", "draft", "head", "assistant_model", "data", "eval_data"}
_SECRETS = {"hub_token", "token", "push_to_hub_token"}
_PATH_INSIDE = re.compile(r"(?:file://|~|\b[A-Za-z]:)?[\\/](?:[^\s\"'\\/,;:{}\[\]]+[\\/])*")


def public_command(argv: Sequence[str], names: Mapping[str, str] | None = None) -> str:
    """
    Returns a command of `eagle-hf` for a card or a record.

    Args:
        argv (`Sequence[str]`): The words after `eagle-hf`.
        names (`Mapping[str, str]`, *optional*): What to write for a word, such as a repository for its folder.

    Of a path its last part is left, whether it is absolute, relative, of a home folder, of Windows or a `file://`.
    """
    words, option, is_secret = ["eagle-hf"], "", False
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            option = name[2:].replace("-", "_")
            is_secret = option in _SECRETS
            if not is_secret:
                words.append(name + (f"={_public(value, option, names or {})}" if has_value else ""))
        elif not is_secret:
            words.append(_public(word, option, names or {}))
    return shlex.join(words)


def without_paths(command: str) -> str:
    """Returns a command that is known as text only, made public likewise."""
    try:
        words = shlex.split(command)
    except ValueError:  # no shell would take it either
        return _PATH_INSIDE.sub("", command)
    if words[:1] == ["eagle-hf"]:
        return public_command(words[1:])
    return shlex.join(_public(word, "", {}) for word in words)


def _public(word: str, option: str, names: Mapping[str, str]) -> str:
    if word in names:
        return names[word]
    if option in _NAMES:
        return word
    if (name := hub_id(word)) is not None and (option in _MODELS_AND_DATA or "/" not in word):
        return name
    if re.search(r"[\s{}\[\]]", word) and not os.path.exists(word):  # JSON or a sentence
        return _PATH_INSIDE.sub("", word) if re.search(r"[\\/]", word) else word
    if word.startswith("~") or re.search(r"[\\/]", word):
        return re.split(r"[\\/]+", word.rstrip("\\/"))[-1].removeprefix("~") or "."
    return word
