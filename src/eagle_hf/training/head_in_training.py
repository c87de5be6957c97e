"""The head as training calls it: the module that DDP, FSDP and Deepspeed wrap."""

from collections.abc import Callable
from typing import Any

from ..head.modeling_eagle import EagleDraftModel


class HeadInTraining(EagleDraftModel):
    """
    Computes objectives of a head. It is made of the head's own modules and parameters under the same names, so that
    what is trained and saved is the head.

    DDP and FSDP need whatever uses parameters to happen inside `forward`, and an objective unrolls the head many times:
    here it is an argument of `forward`, which the head itself does not know.

    Args:
        head ([`EagleDraftModel`]): The head.
    """

    def __init__(self, head: EagleDraftModel):
        self.__dict__.update(
            vars(head)
        )  # shares parameters, buffers and modules; a module's constructor makes new ones
        self.__dict__["head"] = head  # unregistered: it is no part of the names

    def forward(self, *args: Any, objective: Callable[[EagleDraftModel], Any] | None = None, **kwargs: Any) -> Any:
        """
        Returns what `objective` computes of the head; without one, as [`EagleDraftModel.forward`].

        Args:
            objective (`Callable`, *optional*): Called with the head.
        """
        return super().forward(*args, **kwargs) if objective is None else objective(self)

    def train(self, mode: bool = True) -> "HeadInTraining":
        """Sets the mode of the head too, whose modules these are."""
        self.head.train(mode)
        self.training = mode
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the head; arguments as in [`EagleDraftModel.save_pretrained`]."""
        self.head.save_pretrained(*args, **kwargs)

    @property
    def _training_record(self) -> str | None:
        return self.head._training_record

    @_training_record.setter
    def _training_record(self, record: str | None) -> None:
        self.head._training_record = record
