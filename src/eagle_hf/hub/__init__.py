"""Publishing heads on the Hub: what training and measuring have recorded, the card that is made of it, the commit."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .card import create_model_card
    from .measurements import Measurements, TaskResult
    from .publishing import push_head
    from .training_facts import TrainingFacts

__all__ = ["Measurements", "TaskResult", "TrainingFacts", "create_model_card", "push_head"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card": ("create_model_card",),
        "measurements": ("Measurements", "TaskResult"),
        "publishing": ("push_head",),
        "training_facts": ("TrainingFacts",),
    },
)
