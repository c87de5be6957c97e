"""
Records how a head was trained, in a file: `training.json` travels in the folder of a head, beside its weights,
so that every card of it tells the same.

```text
{
  "eagle_hf_training": 1,                    version of this record
  "command": "eagle-hf train --target org/target --data answers.jsonl ...",
  "steps": 1200, "epochs": 3.0, ...          the fields of `TrainingFacts`; those that are not known are left out
}
```
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .measurements import Measurements, TaskResult, current_versions


FILE = "training.json"
VERSION = 1
_MARK = "eagle_hf_training"


@dataclass(frozen=True)
class TrainingFacts:
    """
    Says how a head was trained.

    Args:
        command (`str`): Trains it again.
        data (`str`): In words: sources, how the answers were made, amount, chat template.
        datasets (`Sequence[str]`, *optional*): Data sets on the Hub.
        license (`str`, *optional*): Identifier of the head's licence on the Hub.
        hyperparameters (`Mapping[str, Any]`, *optional*): Learning rate, batch size, epochs, unrolls, ...
        seed (`int`, *optional*): Seed.
        hardware (`str`, *optional*): Hardware.
        hours (`float`, *optional*): Duration, over all pieces of a run that was interrupted.
        num_starts (`int`, *optional*): In how many pieces it was trained.
        steps (`int`, *optional*): Steps that were made.
        epochs (`float`, *optional*): Epochs that were made.
        num_tokens (`int`, *optional*): Tokens that were read, in all epochs, padding left out.
        num_trained_tokens (`int`, *optional*): Those of them that were trained.
        longest (`int`, *optional*): Tokens of the longest text that was trained.
        max_length (`int`, *optional*): Tokens beyond which texts were cut or dropped.
        coverage (`float`, *optional*): Share of the trained tokens that the draft vocabulary holds.
        last_logged_loss (`float`, *optional*): The last loss in the log: the mean of the steps since the one before.
        mean_loss (`float`, *optional*): The mean over all steps.
        final_metrics (`Mapping[str, float]`, *optional*): Other losses and accuracies at the end.
        rows (`Mapping[str, int]`, *optional*): What became of the rows, by name.
        evaluation ([`Measurements`], *optional*): What was measured at the end, on texts that were not trained.
        started_from ([`TrainingFacts`], *optional*): How the head was trained that this training started from.
        versions (`Mapping[str, str]`, *optional*): Defaults to those in use.
        git_sha (`str`, *optional*): Commit of the code.
    """

    command: str
    data: str
    datasets: Sequence[str] = ()
    license: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    hardware: str | None = None
    hours: float | None = None
    num_starts: int | None = None
    steps: int | None = None
    epochs: float | None = None
    num_tokens: int | None = None
    num_trained_tokens: int | None = None
    longest: int | None = None
    max_length: int | None = None
    coverage: float | None = None
    last_logged_loss: float | None = None
    mean_loss: float | None = None
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    evaluation: Measurements | None = None
    started_from: "TrainingFacts | None" = None
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    git_sha: str | None = None

    def to_json(self) -> str:
        """Returns the content of `training.json`."""
        return json.dumps({_MARK: VERSION} | _known(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = FILE) -> "TrainingFacts":
        """
        Reads the content of `training.json`. Nothing in it is passed over.

        Args:
            text (`str`): The content.
            source (`str`, *optional*): Where it was read, for messages.

        Raises:
            `ValueError`: if it is no such record, of another version, or has fields that are unknown, missing or of
                another type.
        """
        try:
            known = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source} is not JSON ({error}): it says nothing of how the head was trained.") from error
        if not isinstance(known, dict) or _MARK not in known:
            raise ValueError(
                f"{source} has no `{_MARK}`, so that it is no record of eagle_hf. Rename it if it is yours; remove it "
                "if how the head was trained need not be told."
            )
        if known[_MARK] != VERSION:
            raise ValueError(
                f"{source} is a record of version {known[_MARK]!r}, and this eagle_hf reads version {VERSION}. Use the "
                "version of eagle_hf that wrote it, or a later one."
            )
        return _read(cls, {name: value for name, value in known.items() if name != _MARK}, source)


def _known(thing: Any) -> dict[str, Any]:
    """Returns the fields that say something, in their order."""
    found = {}
    for one in dataclasses.fields(thing):
        value = getattr(thing, one.name)
        if value is None or (isinstance(value, list | tuple | Mapping) and not value):
            continue
        found[one.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _known(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


_INSIDE: dict[tuple[type, str], type] = {
    (TrainingFacts, "evaluation"): Measurements,
    (TrainingFacts, "started_from"): TrainingFacts,
    (Measurements, "results"): TaskResult,
}
# What JSON holds of the fields; those that are not named are numbers.
_TYPES: dict[type, set[str]] = {
    int: {"seed", "num_starts", "steps", "num_tokens", "num_trained_tokens", "longest", "max_length", "num_prompts",
          "tokens_compared"},
    str: {"command", "data", "license", "hardware", "git_sha", "task", "dataset", "dtype", "notes"},
    list: {"datasets", "results", "acceptance_by_depth", "speedup_quartiles"},
    dict: {"hyperparameters", "final_metrics", "rows", "versions", "evaluation", "started_from"},
}  # fmt: skip
_NAMES = {int: "a whole number", str: "a text", list: "a list", dict: "an object", float: "a number"}


def _read(kind: type, known: Any, source: str) -> Any:
    if not isinstance(known, dict):
        raise ValueError(f"{source}: expected an object for `{kind.__name__}`, got {known!r}.")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(known.keys() - fields.keys()):
        raise ValueError(
            f"{source} has {', '.join(f'`{name}`' for name in unknown)}, which version {VERSION} of the record does "
            "not know. A misspelt field would be lost silently."
        )
    required = [
        name
        for name, one in fields.items()
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in known]:
        raise ValueError(f"{source} lacks {', '.join(f'`{name}`' for name in missing)}.")
    values = {name: _value(kind, name, value, source) for name, value in known.items()}
    if "versions" in fields:
        values.setdefault("versions", {})  # those in use are not those of then
    return kind(**values)


def _value(kind: type, name: str, value: Any, source: str) -> Any:
    expected = next((kind for kind, names in _TYPES.items() if name in names), float)
    if not isinstance(value, (int, float) if expected is float else expected) or isinstance(value, bool):
        raise ValueError(f"{source}: `{name}` is {value!r}, expected {_NAMES[expected]}.")
    inside = _INSIDE.get((kind, name))
    if inside is not None and isinstance(value, list):
        return [_read(inside, item, source) for item in value]
    if inside is not None:
        return _read(inside, value, source)
    return tuple(value) if isinstance(value, list) else value
