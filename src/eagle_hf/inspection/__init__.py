"""
Says what a head is, and whether it is read correctly. A head that is read wrongly still gives the right text, only
slowly, so that the one proof of a reading is measured acceptance.
"""

from .facts import HeadFacts
from .readings import Reading
from .report import HeadInspection, Measured, inspect_head


__all__ = ["HeadFacts", "HeadInspection", "Measured", "Reading", "inspect_head"]
