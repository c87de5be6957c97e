"""
Reads published heads, and writes them for other engines. One file per layout turns what a repository holds into an
[`EagleConfig`] and the tensors of [`EagleDraftModel`]; which layout it is follows from the tensors first and from the
configuration second.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .exporting import export_checkpoint
    from .reading import EagleCheckpoint, read_checkpoint

__all__ = ["EagleCheckpoint", "export_checkpoint", "read_checkpoint"]

__getattr__, __dir__ = lazy_names(
    __name__, {"exporting": ("export_checkpoint",), "reading": ("EagleCheckpoint", "read_checkpoint")}
)
