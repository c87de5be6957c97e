"""Attaches heads that a target uses by default, for callers that cannot pass `assistant_model`."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import logging

from ..draft_options import OTHER_WORDS, DraftOptions, is_draft_option, written_options
from ..head.modeling_eagle import EagleDraftModel
from .call import CallConfig
from .pairing import check_call


logger = logging.get_logger(__name__)


def refuse_name(draft: Any) -> None:
    """
    Refuses the name of a model in the place of the model.

    Raises:
        `ValueError`: saying how to load it.
    """
    if isinstance(draft, str | os.PathLike):
        raise ValueError(
            f"Got {str(draft)!r} as assistant, a name where a model is expected. Load the head first: "
            f"EagleDraftModel.from_pretrained({str(draft)!r}), or another assistant by AutoModelForCausalLM, and pass "
            "what comes of it. A pipeline takes a loaded head as well."
        )


class AttachedDraft:
    """
    A head that is attached to a target. It stands where a call has an `assistant_model`, and looks like the head.

    Args:
        draft ([`EagleDraftModel`]): The head.
    """

    def __init__(self, draft: EagleDraftModel):
        self.draft = draft
        self._said: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttachedDraft":
        return AttachedDraft(self.draft)  # a copied target drafts with the same head

    def warn_once(self, reason: str) -> None:
        """Says that a call runs without the head, once for every reason."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(f"Calls like this one run without the attached draft, as plain `generate`: {reason}")


class _AttachedCall:
    """
    A method of a target that knows of an attached head. An object, not a function, so that attached targets can be
    copied and pickled.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        attached ([`AttachedDraft`]): The head.
        previous (`Callable`): What the target called so far.
        is_method (`bool`): Whether that was the method of its class.
    """

    def __init__(self, model: PreTrainedModel, attached: AttachedDraft, previous: Callable[..., Any], is_method: bool):
        self.model = model
        self.attached = attached
        self.previous = previous
        self.is_method = is_method

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.previous)  # for callers that look at what `generate` takes


class AttachedGenerate(_AttachedCall):
    """`generate` with the head."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generates with the head, unless the call brings an assistant of its own or cannot be drafted."""
        names = list(inspect.signature(GenerationMixin.generate).parameters)[1:]  # `self` is bound
        arguments = dict(zip(names, args, strict=False)) | kwargs
        if "assistant_model" in arguments or "eagle_draft" in arguments:
            return self.previous(*args, **kwargs)
        if arguments.get("custom_generate") is not None:
            self.attached.warn_once("`custom_generate` is a way to generate of its own.")
            return self.previous(*args, **kwargs)
        config = CallConfig(self.model, arguments)
        written = written_options(arguments, arguments.get("generation_config"), self.model.generation_config)
        DraftOptions.from_generation_config(self.attached.draft.generation_config, written=written)
        if arguments.get("cache_implementation") != "paged":  # which says so itself
            if (reason := self._refusal(config, written)) is None:
                return self.previous(*args, assistant_model=self.attached, **kwargs)
            self.attached.warn_once(reason)
        plain = {n: value for n, value in kwargs.items() if n in OTHER_WORDS or not is_draft_option(n)}
        return self.previous(*args, **plain)

    def _refusal(self, config: CallConfig, written: Mapping[str, Any]) -> str | None:
        """Returns why the call is not drafted, as far as it is known by now."""
        if (mode := config.other_mode()) is not None:
            return f"the call asks for {mode}, and drafts go with greedy search or sampling."
        if (name := config.other_drafter(written)) is not None:
            return f"`{name}` asks for another way to draft."
        try:
            check_call(self.model, self.attached.draft, config)
        except ValueError as error:
            return getattr(error, "reason", str(error))
        return None


class AttachedBatching(_AttachedCall):
    """Continuous batching (`generate_batch`, servers), which has no place for a head."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what was there, and says that nothing is drafted."""
        self.attached.warn_once("continuous batching (`generate_batch`, `cache_implementation='paged'`) has no drafts.")
        return self.previous(*args, **kwargs)


_CALLS = {"generate": AttachedGenerate, "init_continuous_batching": AttachedBatching}


def attach(model: PreTrainedModel, draft: EagleDraftModel) -> None:
    """
    Makes `model.generate(...)` use the draft by default, for callers that cannot pass `assistant_model`,
    such as servers and pipelines. An `assistant_model` that is passed all the same wins. Calls that cannot be drafted,
    such as beam search or `use_cache=False`, run as plain `generate`, with one warning for every reason.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): Its draft.

    Raises:
        `ValueError`: if the two do not fit together.

    Example:

    ```python
    >>> eagle_hf.attach(target, draft)  # doctest: +SKIP
    >>> target.generate(**inputs)  # doctest: +SKIP
    >>> eagle_hf.detach(target)  # doctest: +SKIP
    ```
    """
    refuse_name(draft)
    check_call(model, draft, model.generation_config)
    detach(model)
    attached = AttachedDraft(draft)
    for name, call in _CALLS.items():
        if hasattr(model, name):
            setattr(model, name, call(model, attached, getattr(model, name), is_method=name not in vars(model)))


def detach(model: PreTrainedModel) -> None:
    """Undoes [`attach`]. Does nothing where no draft is attached."""
    for name in _CALLS:
        call = vars(model).get(name)
        if isinstance(call, _AttachedCall):
            del model.__dict__[name]
            if not call.is_method:
                setattr(model, name, call.previous)
