"""
Keeps what an interrupted run has measured so far: a line per finished prompt and temperature, behind a line with
everything that the figures depend on. A run of other settings does not go on with them.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class FinishedPrompts:
    """
    Keeps records in a file, each as soon as it is complete. A line that was cut short by an interruption is dropped.

    Args:
        path (`Path`): The file; created at the first record.
        fingerprint (`dict[str, Any]`): What the figures depend on.
        restart (`bool`, *optional*, defaults to `False`): Throw away what the file holds.

    Raises:
        `ValueError`: if the file holds records of another fingerprint, or no records at all.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any], restart: bool = False):
        self.path = path
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self._records: dict[tuple[str, str, float], dict[str, Any]] = {}
        if restart:
            path.unlink(missing_ok=True)
        if path.exists():
            self._read()
        self.num_resumed = len(self._records)

    def __enter__(self) -> "FinishedPrompts":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed on leaving)
        if is_new:
            self._write({"fingerprint": self.fingerprint})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, task: str, digest: str, temperature: float) -> dict[str, Any] | None:
        """Returns the record of a prompt, if it is finished."""
        return self._records.get((task, digest, temperature))

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record; it is on the disk when this returns."""
        self._records[_key(record)] = record
        self._write(record)

    def remove(self) -> None:
        """Deletes the file: the run is complete, and the next one measures anew."""
        self.path.unlink(missing_ok=True)

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:  # cut short in the first line
            self.path.unlink()
            return
        try:
            header, *records = (json.loads(line) for line in lines)
            before = header["fingerprint"]
            self._records = {_key(record): record for record in records}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} holds no finished prompts of a benchmark ({error!r}). Move it away, or give --restart."
            ) from error
        if before != self.fingerprint:
            changed = [
                f"{name} was {before.get(name)!r} and is {self.fingerprint.get(name)!r}"
                for name in sorted({*before, *self.fingerprint})
                if before.get(name) != self.fingerprint.get(name)
            ]
            raise ValueError(
                f"{self.path} holds {len(self._records)} finished prompts of an interrupted run with other settings, "
                f"which must not be mixed with this one: {'; '.join(changed)}. Give the same settings to go on with "
                "it, another --output to keep it, or --restart to throw it away."
            )
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))


def _key(record: dict[str, Any]) -> tuple[str, str, float]:
    return record["task"], record["digest"], record["temperature"]
