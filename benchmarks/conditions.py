"""Under which conditions something was measured: what every recorded result says beside its figures."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from eagle_hf.evaluation.environment import hardware, load_average, versions


class Timing:
    """
    What counts as time: that of the clock, or on request the processor time of this process, which says more on a
    machine that others use at the same time (with one thread; several threads wait for each other at work).
    """

    is_processor_time = False


def clock() -> float:
    """Seconds, in the sense of [`Timing`]."""
    return time.process_time() if Timing.is_processor_time else time.perf_counter()


def resident_bytes(field: str) -> int:
    """Resident memory of this process, `"VmRSS"`, or the highest so far, `"VmHWM"`, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def conditions() -> dict[str, Any]:
    """Command, versions and hardware, for a JSON record."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": versions(),
        "hardware": hardware(device),
        "load_average": load_average(),
        "time": "of the processor" if Timing.is_processor_time else "of the clock",
    }
