"""
Brings a head into the decoding loop of `transformers`: the loop asks the target for the generator of a call, by a
method that knows the classes of assistants by name. An attribute of the target stands in front of this method for a
while.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from ..head.modeling_eagle import EagleDraftModel


_HOOK = "_get_candidate_generator"  # what the loop of `transformers` calls, once per call
_LOCK = threading.Lock()


class ChainAssistant:
    """
    Stands for a head where the decoding loop of `transformers` is to draft with it; goes into `generate` as
    `assistant_model`. Made by [`EagleCandidateGenerator.assisting`].

    Args:
        draft ([`EagleDraftModel`]): The head.
        make (`Callable`): Makes the generator of a call.

    Attributes:
        acceptance_lengths (`list[int]`): Tokens that each verification of the newest call added.
    """

    def __init__(self, draft: EagleDraftModel, make: Callable[..., Any]):
        self.config, self.generation_config = draft.config, draft.generation_config  # `generate` looks at these
        self.acceptance_lengths: list[int] = []
        self._draft, self._make = draft, make

    def open(
        self, model: PreTrainedModel, generation_config: GenerationConfig, logits_processor: Any
    ) -> CandidateGenerator:
        """Returns the generator of a call."""
        generator = self._make(model, self._draft, generation_config, logits_processor)
        self.acceptance_lengths = generator.acceptance_lengths
        return generator


class _Choice:
    """
    Chooses the generator of a call, in the place of a target's own method.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        previous (`Callable`): What was called so far.
        is_method (`bool`): Whether that is the method of the target's class.
    """

    def __init__(self, model: PreTrainedModel, previous: Callable[..., CandidateGenerator], is_method: bool):
        self.model, self.previous, self.is_method = model, previous, is_method
        self.num_open = 0  # contexts, of whatever threads

    def __call__(self, *args: Any, assistant_model: Any = None, **kwargs: Any) -> CandidateGenerator:
        if isinstance(assistant_model, ChainAssistant):
            return assistant_model.open(self.model, kwargs["generation_config"], kwargs["logits_processor"])
        return self.previous(*args, assistant_model=assistant_model, **kwargs)


@contextmanager
def choosing_generators(model: PreTrainedModel) -> Iterator[None]:
    """
    Lets a target know [`ChainAssistant`] as long as the context is open. Contexts of several threads may overlap.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
    """
    with _LOCK:
        choice = vars(model).get(_HOOK)
        if not isinstance(choice, _Choice):
            choice = _Choice(model, getattr(model, _HOOK), is_method=choice is None)
            setattr(model, _HOOK, choice)
        choice.num_open += 1
    try:
        yield
    finally:
        with _LOCK:
            choice.num_open -= 1
            if choice.num_open == 0:
                delattr(model, _HOOK)
                if not choice.is_method:
                    setattr(model, _HOOK, choice.previous)
