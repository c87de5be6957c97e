"""
A run that has finished says so. `finished_run.json` in its output folder, written when the head was saved, holds what
identifies the run: started again as it was, there is nothing to do; started again with other data or another schedule,
it would spoil a head that is complete.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import run_identity


if TYPE_CHECKING:
    from .trainer import EagleTrainer

FILE = "finished_run.json"


def record(trainer: "EagleTrainer", rendered_at: str) -> None:
    """Writes down that a run has finished, at once, as the last thing that it does."""
    path = Path(str(trainer.args.output_dir)) / FILE
    facts = {
        "run": trainer.run_identity(),
        "horizon": run_identity.horizon(trainer.args),
        "steps": trainer.state.global_step,
        "rendered_at": rendered_at,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def recorded_time(output_dir: str | os.PathLike) -> str | None:
    """Returns the time that chat templates saw in a run that has finished; `None` if none has."""
    return _read(output_dir).get("rendered_at")


def has_finished(trainer: "EagleTrainer", head: str | os.PathLike) -> bool:
    """
    Checks whether the run of a trainer has finished and its head is there.

    Args:
        trainer ([`EagleTrainer`]): About to train.
        head (`str` or `os.PathLike`): The folder of the finished head.

    Raises:
        `ValueError`: if another run has finished in this output folder; says what differs.
    """
    known = _read(trainer.args.output_dir)
    if not known or not any(Path(head).glob("*.safetensors")):
        return False
    differing = run_identity.differences(known["run"], trainer.run_identity())
    horizon = run_identity.horizon(trainer.args)
    if not differing and known["horizon"] != horizon and not _is_longer(known["horizon"], horizon):
        differing = run_identity.differences(known["horizon"], horizon)
    if differing:
        raise ValueError(
            f"A run of {known['steps']} steps has finished in {trainer.args.output_dir}, and differs from this one in "
            f"{'; '.join(differing)}. Its head in {head} is left as it is. Choose another `--output_dir`; to train "
            f"that head further, with `--head {head}`."
        )
    return known["horizon"] == horizon


def _is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(name in now and now[name] > value for name, value in before.items())


def _read(output_dir: Any) -> dict[str, Any]:
    path = Path(str(output_dir)) / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OSError(
            f"{path} cannot be read ({error}): remove it if the run is to go on from its checkpoints."
        ) from error
