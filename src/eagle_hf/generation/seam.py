"""
How an EAGLE draft gets into `generate`: two methods of `GenerationMixin` are wrapped once, when `eagle_hf` is imported.
They act on EAGLE drafts only and pass everything else on to what was there before.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from ..modeling_eagle import EagleDraftModel
from ..versions import SUPPORTED
from .decoding import eagle_decoding
from .pairing import align_draft, check_call


_MARK = "_eagle_hf_wraps"  # on our wrappers: the method they wrap
_NEEDED = {
    "_assisted_decoding": {
        "input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer",
        "inputs_tensor", "assistant_model", "tokenizer",
    },
    "_validate_generation_mode": {"generation_mode", "generation_config", "generation_mode_kwargs"},
    "_prefill": {"input_ids", "generation_config", "model_kwargs"},
}  # fmt: skip


def install() -> None:
    """
    Make `generate(assistant_model=draft)` understand EAGLE drafts. Calling it again does nothing.

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
    if not hasattr(GenerationMixin._assisted_decoding, _MARK):
        _wrap("_assisted_decoding", _assisted_decoding)
        _wrap("_validate_generation_mode", _validate_generation_mode)


def uninstall() -> None:
    """Take the wrappers away again."""
    for name in ("_assisted_decoding", "_validate_generation_mode"):
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


def _assisted_decoding(
    original: Callable,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *args: Any,
    assistant_model: PreTrainedModel | None = None,
    **kwargs: Any,
) -> Any:
    draft = _inside(assistant_model)
    if not isinstance(draft, EagleDraftModel):
        return original(input_ids, *args, assistant_model=assistant_model, **kwargs)
    for name in ("inputs_tensor", "assistant_tokenizer", "tokenizer"):
        kwargs.pop(name, None)
    return eagle_decoding(model, input_ids, *args, **kwargs, draft=draft)


def _validate_generation_mode(
    original: Callable,
    model: PreTrainedModel,
    generation_mode: Any,
    generation_config: Any,
    generation_mode_kwargs: Any,
) -> Any:
    draft = _inside(generation_mode_kwargs.get("assistant_model"))
    if not isinstance(draft, EagleDraftModel) or generation_mode != GenerationMode.ASSISTED_GENERATION:
        return original(generation_mode, generation_config, generation_mode_kwargs)
    check_call(model, draft, generation_config)
    align_draft(model, draft)


def _inside(assistant: Any) -> Any:
    """The model that `torch.compile` wrapped; drafting does not go through its `forward`."""
    return getattr(assistant, "_orig_mod", assistant)


def attach(model: PreTrainedModel, draft: EagleDraftModel) -> None:
    """
    Make `model.generate(...)` use the draft without being told to, for callers that cannot pass `assistant_model`, such
    as servers and pipelines. An `assistant_model` that is passed all the same wins.

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
    check_call(model, draft, model.generation_config)
    detach(model)
    generate = functools.partial(model.generate, assistant_model=draft)
    generate.eagle_hf_previous = model.__dict__.get("generate")  # type: ignore[attr-defined]
    model.generate = generate


def detach(model: PreTrainedModel) -> None:
    """Undo [`attach`]. Does nothing where no draft is attached."""
    generate = model.__dict__.get("generate")
    if not hasattr(generate, "eagle_hf_previous"):
        return
    if generate.eagle_hf_previous is None:
        del model.__dict__["generate"]
    else:
        model.generate = generate.eagle_hf_previous
