"""Under which conditions something was measured: what every recorded result says beside its figures."""

import platform
import sys
import time
from typing import Any

import torch
import transformers
from speed import cpu_name

import eagle_hf


class Timing:
    """
    What counts as time: that of the clock, or on request the processor time of this process, which says more on a
    machine that others use at the same time (with one thread; several threads wait for each other at work).
    """

    is_processor_time = False


def clock() -> float:
    """Seconds, in the sense of [`Timing`]."""
    return time.process_time() if Timing.is_processor_time else time.perf_counter()


def conditions() -> dict[str, Any]:
    """Command, versions and hardware, for a JSON record."""
    hardware = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        hardware += f"; {torch.cuda.get_device_name()}"
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": {
            "eagle_hf": eagle_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "hardware": hardware,
        "time": "of the processor" if Timing.is_processor_time else "of the clock",
    }
