"""
Reading published heads, and writing them for other engines. One file per layout turns what a repository holds into an
[`EagleConfig`] and the tensors of [`EagleDraftModel`]; which layout it is follows from the tensors first and from the
configuration second.
"""

from .exporting import export_checkpoint
from .reading import EagleCheckpoint, read_checkpoint


__all__ = ["EagleCheckpoint", "export_checkpoint", "read_checkpoint"]
