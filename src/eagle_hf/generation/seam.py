"""
Brings EAGLE drafts into `generate`: four methods of `GenerationMixin` are wrapped once, when `eagle_hf` is
imported. They act on EAGLE drafts only and pass everything else on to what was there before. In the order in which
`generate` calls them:

```text
_extract_generation_mode_kwargs   takes draft options out of the keywords, which `generate` would not know
_prepare_generation_config        reads those of the call's config, before it is filled with defaults
_validate_generation_mode         refuses what cannot be drafted, before anything has run
_assisted_decoding                the decoding loop
```
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode
from transformers.utils import logging

from ..draft_options import is_draft_option, written_options
from ..head.modeling_eagle import EagleDraftModel
from ..versions import SUPPORTED
from .attaching import AttachedDraft, refuse_name
from .decoding import eagle_decoding, verifies_trees
from .pairing import check_call


logger = logging.get_logger(__name__)

_MARK = "_eagle_hf_wraps"  # on our wrappers: the method they wrap
_NEEDED = {
    "_extract_generation_mode_kwargs": {"custom_generate", "kwargs", "assistant_model"},
    "_prepare_generation_config": {"generation_config", "kwargs"},
    "_assisted_decoding": {
        "input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer",
        "inputs_tensor", "assistant_model", "tokenizer",
    },
    "_validate_generation_mode": {"generation_mode", "generation_config", "generation_mode_kwargs"},
    "_prefill": {"input_ids", "generation_config", "model_kwargs"},
}  # fmt: skip


def install() -> None:
    """
    Makes `generate(assistant_model=draft)` understand EAGLE drafts. Calling it again does nothing.

    Raises:
        `ImportError`: if this version of `transformers` decodes in a way that is not known here.
    """
    for name, needed in _NEEDED.items():
        method = getattr(GenerationMixin, name, None)
        if method is None or not needed <= set(inspect.signature(method).parameters):
            raise ImportError(
                f"eagle_hf does not know `GenerationMixin.{name}` of transformers {transformers.__version__}. It works "
                f"with transformers {SUPPORTED}: install one of these (`pip install 'transformers{SUPPORTED}'`)."
            )
    for name, wrapper in _WRAPPERS.items():
        if not hasattr(getattr(GenerationMixin, name), _MARK):
            _wrap(name, wrapper)


def uninstall() -> None:
    """Takes the wrappers away again."""
    for name in _WRAPPERS:
        method = getattr(GenerationMixin, name)
        if hasattr(method, _MARK):
            setattr(GenerationMixin, name, getattr(method, _MARK))


def _wrap(name: str, wrapper: Callable) -> None:
    original = getattr(GenerationMixin, name)

    @functools.wraps(original)  # `generate` reads the signature of its decoding methods
    def method(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(original, self), self, *args, **kwargs)

    setattr(method, _MARK, original)
    setattr(GenerationMixin, name, method)


@dataclass(repr=False)
class _Assistant:
    """
    A head on its way through `generate`, in the place of `assistant_model`.

    Args:
        draft ([`EagleDraftModel`]): The head.
        attached ([`AttachedDraft`], *optional*): Where the call does not know of the head.
        written (`dict[str, Any]`): What the call says about drafting.
    """

    draft: EagleDraftModel
    attached: AttachedDraft | None = None
    written: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, assistant: Any) -> "_Assistant | None":
        """
        Returns the head that was given as `assistant_model`; `None` if it is something else.

        Raises:
            `ValueError`: if it is the name of a model, which `generate` does not take.
        """
        if isinstance(assistant, _Assistant):
            return assistant
        refuse_name(assistant)
        attached = assistant if isinstance(assistant, AttachedDraft) else None
        draft = assistant if attached is None else attached.draft
        draft = getattr(draft, "_orig_mod", draft)  # `torch.compile` wraps; drafting does not go through its `forward`
        return cls(draft, attached) if isinstance(draft, EagleDraftModel) else None


_KEY = "_eagle_hf_assistant"  # a keyword between two wrapped methods


def _extract_generation_mode_kwargs(
    original: Callable, model: PreTrainedModel, custom_generate: Any, kwargs: dict[str, Any], *args: Any, **named: Any
) -> dict[str, Any]:
    mode_kwargs = original(custom_generate, kwargs, *args, **named)
    if (assistant := _Assistant.of(mode_kwargs.get("assistant_model"))) is not None:
        assistant.written = {name: kwargs.pop(name) for name in list(kwargs) if is_draft_option(name)}
        mode_kwargs["assistant_model"] = kwargs[_KEY] = assistant
    return mode_kwargs


def _prepare_generation_config(
    original: Callable, model: PreTrainedModel, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
) -> Any:
    assistant = kwargs.pop(_KEY, None)
    if assistant is not None:
        assistant.written = written_options(assistant.written, generation_config, model.generation_config)
    return original(generation_config, *args, **kwargs)


def _validate_generation_mode(
    original: Callable,
    model: PreTrainedModel,
    generation_mode: Any,
    generation_config: Any,
    generation_mode_kwargs: Any,
) -> Any:
    assistant = _Assistant.of(generation_mode_kwargs.get("assistant_model"))
    if assistant is None:
        return original(generation_mode, generation_config, generation_mode_kwargs)
    if generation_mode != GenerationMode.ASSISTED_GENERATION:
        mode = str(generation_mode.value).replace("_", " ")
        logger.warning(f"The draft is not used: the call asks for {mode}; drafts go with greedy search or sampling.")
        del generation_mode_kwargs["assistant_model"]  # nothing of the kind for the target's forward
        return original(generation_mode, generation_config, generation_mode_kwargs)
    check_call(model, assistant.draft, generation_config, assistant.written)


def _assisted_decoding(
    original: Callable,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *args: Any,
    assistant_model: Any = None,
    **kwargs: Any,
) -> Any:
    assistant = _Assistant.of(assistant_model)
    if assistant is None:
        return original(input_ids, *args, assistant_model=assistant_model, **kwargs)
    for name in ("inputs_tensor", "assistant_tokenizer", "tokenizer"):
        kwargs.pop(name, None)
    if assistant.attached is not None:
        try:  # what is known only now
            verifies_trees(model, input_ids, kwargs["generation_config"], kwargs)
        except ValueError as error:
            assistant.attached.warn_once(getattr(error, "reason", str(error)))
            return model._sample(input_ids, *args, **kwargs)
    return eagle_decoding(model, input_ids, *args, **kwargs, draft=assistant.draft, written=assistant.written)


_WRAPPERS: dict[str, Callable] = {
    "_extract_generation_mode_kwargs": _extract_generation_mode_kwargs,
    "_prepare_generation_config": _prepare_generation_config,
    "_validate_generation_mode": _validate_generation_mode,
    "_assisted_decoding": _assisted_decoding,
}
