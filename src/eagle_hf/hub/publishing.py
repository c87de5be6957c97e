"""Pushing a head to the Hub: weights, configuration, card, and a `generate` of its own, in one commit."""

import json
import os
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from packaging.version import Version
from transformers import PreTrainedModel
from transformers.utils import logging

from ..hub_names import hub_id, is_hub_id
from ..versions import __version__
from .card import create_model_card
from .training_facts import FILE as TRAINING_RECORD


logger = logging.get_logger(__name__)

CUSTOM_GENERATE = Path(__file__).parent / "templates" / "custom_generate.py.txt"

# What an earlier push may have left: other shards, or PyTorch files, that a loader could take for the weights, and the
# record of another training.
WEIGHT_PATTERNS = ["model*.safetensors", "model.safetensors.index.json", "pytorch_model*", TRAINING_RECORD]


def push_head(
    draft: PreTrainedModel,
    repo_id: str,
    *,
    card: ModelCard | None = None,
    custom_generate: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    base_model: str | None = None,
    must_name_target: bool = False,
    **card_kwargs: Any,
) -> CommitInfo:
    """
    Pushes a head to the Hub in one commit at the end: `config.json`, `generation_config.json`, weights (safetensors)
    and a model card. An upload that is interrupted leaves the repository as it was. Weights that an earlier push left
    under other names are deleted in the same commit. [`EagleDraftModel.push_to_hub`] does this.

    Args:
        draft ([`EagleDraftModel`]): The head.
        repo_id (`str`): Repository, made if there is none.
        card ([`~huggingface_hub.ModelCard`], *optional*):
            The model card. By default a card that the repository has is kept, and otherwise one is written with
            [`create_model_card`].
        custom_generate (`bool`, *optional*, defaults to `False`):
            Whether to add `custom_generate/generate.py`, so that
            `model.generate(..., custom_generate=repo_id, trust_remote_code=True)` uses the head.
        commit_message, commit_description, private, token, revision, create_pr, max_shard_size (*optional*):
            As in `transformers`. A branch that does not exist is made.
        base_model (`str`, *optional*):
            The target on the Hub, for the card and `config.json`. By default what the head's configuration names, if
            it is no path of this machine.
        must_name_target (`bool`, *optional*, defaults to `False`): Whether to refuse a head whose target has no name.
        card_kwargs: `measurements`, `training`, `license`, `language`, `base_model_revision`, `tags` and `limitations`
            of [`create_model_card`]; with any of them but `tags`, or with `base_model`, the card is written even if
            there is one.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`:
            if there are a `card` and arguments to write one from, or `base_model` is a path, or is needed and missing.
    """
    if card is not None and card_kwargs:
        raise ValueError(f"Got a `card`, and {', '.join(card_kwargs)} to write one from. Pass either.")
    target = name_of_target(draft, base_model, is_needed=must_name_target)
    if base_model is not None and card is None:
        card_kwargs["base_model"] = base_model
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    existing = api.list_repo_files(repo_id, revision=None if create_pr else revision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draft.save_pretrained(folder, max_shard_size=max_shard_size)
        _write_target(folder / "config.json", target)
        if custom_generate:
            write_custom_generate(folder, repo_id)
        if card is None and card_kwargs.keys() <= {"tags"} and "README.md" in existing:
            logger.info(f"{repo_id} has a model card already, which is kept. Pass `card` to replace it.")
        else:
            card = card or create_model_card(draft, repo_id, custom_generate=custom_generate, **card_kwargs)
            card.save(folder / "README.md")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        written = {addition.path_in_repo for addition in additions}
        stale = [path for path in existing if path not in written and any(fnmatch(path, p) for p in WEIGHT_PATTERNS)]
        # Not `upload_folder`: with xet it makes several commits, and a reader between them would see half a head.
        return api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=commit_message or "Upload EAGLE head",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def name_of_target(draft: PreTrainedModel, base_model: str | None = None, is_needed: bool = True) -> str | None:
    """
    Returns the repository of a head's target.

    Args:
        draft ([`EagleDraftModel`]): The head.
        base_model (`str`, *optional*): What the user says; by default what the head's configuration names.
        is_needed (`bool`, defaults to `True`): Whether it is an error if there is none.

    Raises:
        `ValueError`: if `base_model` is a path, or none is named and one is needed.
    """
    if base_model is not None:
        if not is_hub_id(base_model):
            raise ValueError(
                f"`base_model` is {base_model!r}, which is a path of this machine or no name at all. Expected the "
                "repository of the target, such as 'org/target': others load it from there."
            )
        return base_model
    known = draft.config.base_model_name_or_path
    name = hub_id(known)
    if name is None and is_needed:
        found = "nothing" if known is None else f"{known!r}, a path of this machine"
        raise ValueError(
            f"The head names {found} as its target, and nobody else could use it. Pass the target's repository "
            "(`--base_model org/target`, `base_model='org/target'`)."
        )
    return name


def _write_target(config_path: Path, target: str | None) -> None:
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = target
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_custom_generate(folder: str | os.PathLike, head: str) -> None:
    """
    Writes `custom_generate/generate.py`, so that `model.generate(..., custom_generate=REPO, trust_remote_code=True)`
    drafts with the head without its caller importing eagle_hf.

    Args:
        folder (`str` or `os.PathLike`): Folder of the repository.
        head (`str`): Repository or folder that the head is loaded from.
    """
    destination = Path(folder) / "custom_generate"
    destination.mkdir(parents=True, exist_ok=True)
    code = Template(CUSTOM_GENERATE.read_text(encoding="utf-8")).substitute(head=repr(str(head)))
    (destination / "generate.py").write_text(code, encoding="utf-8")
    # transformers checks this file itself, and understands final versions only.
    version = Version(__version__)
    requirement = "eagle-hf" if version.is_prerelease else f"eagle-hf>={version.base_version}"
    (destination / "requirements.txt").write_text(requirement + "\n", encoding="utf-8")
