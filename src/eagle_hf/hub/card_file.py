"""The card that lies in a head's folder: tables of a benchmark in it, and what becomes of it when it is pushed."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from .card import create_model_card


CARD = "README.md"
BEGIN, END = "<!-- written by eagle-hf bench -->", "<!-- end of what eagle-hf bench wrote -->"
_TABLES = re.compile(f"{BEGIN}.*?{END}\n*", flags=re.DOTALL)
_NAME = re.compile(r'EagleDraftModel\.from_pretrained\("([^"\n]+)"\)')


def put_tables(text: str, tables: str) -> str:
    """
    Returns the text of a card with tables at the end of its section "Results", in place of those of an earlier call.

    Args:
        text (`str`): The card, without its metadata.
        tables (`str`): Markdown.
    """
    sections = re.split(r"(?m)^(?=## )", _TABLES.sub("", text))
    index = next((i for i, section in enumerate(sections) if section.startswith("## Results")), None)
    if index is None:
        index = len(sections)
        sections.append("\n## Results\n\n")
    sections[index] = sections[index].rstrip() + f"\n\n{BEGIN}\n\n{tables}\n{END}\n\n"
    return "".join(sections).rstrip() + "\n"


def card_to_push(folder: str | Path, draft: PreTrainedModel, model_id: str, **wishes: Any) -> tuple[ModelCard, bool]:
    """
    Returns the card that a folder is published with. One that training or a benchmark wrote is written anew for the
    repository, tables included; one that somebody has edited is kept, with the head's new name in it.

    Args:
        folder (`str` or `Path`): Folder of the head, with or without a `README.md`.
        draft ([`EagleDraftModel`]): The head in it.
        model_id (`str`): The repository.
        wishes: `license`, `language`, `base_model` and `training` of [`create_model_card`].

    Returns:
        `tuple[ModelCard, bool]`: The card, and whether it is one that was edited by hand.
    """
    path = Path(folder) / CARD
    wishes = {name: value for name, value in wishes.items() if value is not None}
    if not path.exists():
        return create_model_card(draft, model_id, **wishes), False
    old = ModelCard.load(path, ignore_metadata_errors=True)
    of_old = {name: getattr(old.data, name, None) for name in ("license", "language", "base_model")}
    known = {name: value for name, value in of_old.items() if value is not None}
    named = _NAME.search(old.text)
    if named is None or not _is_same(create_model_card(draft, named.group(1), **known).text, old.text):
        return _renamed(old, None if named is None else named.group(1), model_id, wishes), True
    card = create_model_card(draft, model_id, **(known | wishes))
    if (tables := _TABLES.search(old.text)) is not None:
        card.text = put_tables(card.text, tables.group(0).removeprefix(BEGIN).rpartition(END)[0].strip() + "\n")
        for name in ("metrics", "eval_results"):
            setattr(card.data, name, getattr(old.data, name, None))
        setattr(card.data, "model_name", model_id.rpartition("/")[2])  # noqa: B010 - the Hub's class has it
    return card, False


def _is_same(ours: str, theirs: str) -> bool:
    """Checks whether two texts are equal but for tables, blanks, and the version of eagle_hf that wrote them."""

    def plain(text: str) -> str:
        text = re.sub(r"\beagle_hf \d[\w.]*", "eagle_hf", _TABLES.sub("", text))
        return re.sub(r"\s+", " ", text).strip()

    return plain(ours) == plain(theirs)


def _renamed(card: ModelCard, old: str | None, model_id: str, wishes: dict[str, Any]) -> ModelCard:
    if old is not None:
        text = card.text.replace(f'from_pretrained("{old}")', f'from_pretrained("{model_id}")')
        text = re.sub(rf"(?m)(?<=--draft ){re.escape(old)}(?=\s)|(?<=inspect ){re.escape(old)}(?=\s)", model_id, text)
        card.text = re.sub(rf"(?m)^# {re.escape(old.rpartition('/')[2])}$", f"# {model_id.rpartition('/')[2]}", text)
    for name in ("license", "language", "base_model"):
        if name in wishes:
            setattr(card.data, name, wishes[name])
    if "training" in wishes and wishes["training"].datasets:
        setattr(card.data, "datasets", list(wishes["training"].datasets))  # noqa: B010
    return card
