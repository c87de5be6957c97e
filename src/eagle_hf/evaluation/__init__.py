"""Measures whether a head is worth using for given prompts: speed against other methods, and acceptance."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .card import measurements, write_card
    from .comparison import Comparison, compare
    from .figures import save_figures
    from .methods import Method, make_methods
    from .report import markdown_report
    from .results import load_result, save_result
    from .running import run_benchmark
    from .settings import BenchmarkSettings
    from .tasks import Prompt, Tasks, load_tasks

__all__ = [
    "BenchmarkSettings",
    "Comparison",
    "Method",
    "Prompt",
    "Tasks",
    "compare",
    "load_result",
    "load_tasks",
    "make_methods",
    "markdown_report",
    "measurements",
    "run_benchmark",
    "save_figures",
    "save_result",
    "write_card",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card": ("measurements", "write_card"),
        "comparison": ("Comparison", "compare"),
        "figures": ("save_figures",),
        "methods": ("Method", "make_methods"),
        "report": ("markdown_report",),
        "results": ("load_result", "save_result"),
        "running": ("run_benchmark",),
        "settings": ("BenchmarkSettings",),
        "tasks": ("Prompt", "Tasks", "load_tasks"),
    },
)
