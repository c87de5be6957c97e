"""Publish a head: its weights, configuration, record of training and card, in one commit.

The card is shown first. It is made from what training recorded in the head's folder (`training.json`), with the tables
that `eagle-hf bench --write_card` put into it; a card that was edited by hand is kept.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..hub.training_facts import TrainingFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("folder", help="folder of the head, such as runs/head/head")
    parser.add_argument("repo", help="repository to push to, such as org/EAGLE3-name; made if there is none")
    parser.add_argument("--base_model", help="repository of the target (default: what training recorded)")
    parser.add_argument("--license", help="licence of the head, such as apache-2.0 (default: what training recorded)")
    parser.add_argument("--datasets", nargs="+", help="data sets on the Hub (default: what training recorded)")
    parser.add_argument("--language", nargs="+", help="languages of the training data, such as en")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    parser.add_argument("--revision", help="branch to push to; made if there is none")
    parser.add_argument("--token", help="token with write permission (default: the one of `hf auth login`)")
    parser.add_argument(
        "--custom_generate", action="store_true", help="let `generate(custom_generate=REPO)` draft with the head"
    )
    parser.add_argument("--commit_message", help="message of the commit")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Checks the folder, shows the card, asks, and pushes."""
    from ..head.modeling_eagle import EagleDraftModel
    from ..hub.card_file import card_to_push
    from ..hub.publishing import name_of_target, push_head
    from ..hub_names import is_hub_id

    folder = Path(args.folder)
    if not is_hub_id(args.repo):
        raise ValueError(f"{args.repo!r} is no repository to push to. Expected a name such as 'org/EAGLE3-name'.")
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}. The first argument is the head's folder, the second the repository."
        )
    if not (folder / "config.json").exists() and (folder / "head" / "config.json").exists():
        raise ValueError(f"{folder} is the output folder of a run; its head is in {folder / 'head'}.")
    draft = EagleDraftModel.from_pretrained(folder)
    base_model = name_of_target(draft, args.base_model)
    draft.training_facts = _with_wishes(draft.training_facts, args)
    card, is_edited = card_to_push(
        folder,
        draft,
        args.repo,
        base_model=base_model,
        license=args.license,
        language=args.language,
        training=draft.training_facts,
    )
    print(card)
    print(f"\n{'-' * 80}")
    if is_edited:
        print("This card was edited by hand: it is kept, with the name of the repository in it.")
    if draft.training_facts is None:
        print("How the head was trained is not recorded: there is no training.json in its folder.")
    if not args.yes and not _agrees(args.repo):
        print("Nothing was pushed.")
        return 1
    commit = push_head(
        draft,
        args.repo,
        card=card,
        base_model=base_model,
        custom_generate=args.custom_generate,
        commit_message=args.commit_message,
        private=args.private or None,
        revision=args.revision,
        token=args.token,
    )
    print(f"pushed: {commit.commit_url}")
    return 0


def _with_wishes(facts: "TrainingFacts | None", args: argparse.Namespace) -> "TrainingFacts | None":
    if facts is None:
        return None
    changes = {name: getattr(args, name) for name in ("license", "datasets") if getattr(args, name)}
    return dataclasses.replace(facts, **changes)


def _agrees(repo: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError("There is nobody to ask here: pass `--yes` once the card is right.")
    return input(f"Push this to {repo}? [y/N] ").strip().lower() in ("y", "yes")
