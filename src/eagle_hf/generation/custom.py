"""
The decoding loop in the public form of `transformers`: a callable that `generate` takes as `custom_generate`. No method
of `transformers` is replaced for it: it works after [`~eagle_hf.generation.seam.uninstall`] as well.

`generate` prepares the call, and hands a callable what it hands its own loops, but for what it calls the arguments of a
mode. These it drops silently; here they go by names of ours:

```text
generate(assistant_model=, streamer=, synced_gpus=, stop_strings=, tokenizer=)
          │                 │           │             │              │
decode(  eagle_draft=, eagle_streamer=, eagle_synced_gpus=, eagle_stop_strings=, eagle_tokenizer=)
```
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed.fsdp import is_fsdp_managed_module
from transformers.generation import GenerationMixin
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..draft_options import OTHER_WORDS, DraftOptions, is_draft_option, written_options
from ..head.modeling_eagle import EagleDraftModel
from .attaching import refuse_name
from .call import CallConfig
from .decoding import eagle_decoding
from .output import EagleGenerateOutput
from .pairing import check_call


def decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    eagle_draft: EagleDraftModel | None = None,
    eagle_streamer: BaseStreamer | None = None,
    eagle_synced_gpus: bool | None = None,
    eagle_stop_strings: str | list[str] | None = None,
    eagle_tokenizer: PreTrainedTokenizerBase | None = None,
    **model_kwargs: Any,
) -> EagleGenerateOutput | torch.Tensor:
    """
    Generates with draft trees where it is passed to `generate` as `custom_generate`. The text is that of plain
    `generate`: greedy token for token, sampling seed for seed.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs:
            As `generate` prepares them. Options of [`DraftOptions`] are keywords of `generate` here too.
        eagle_draft ([`EagleDraftModel`]): The head.
        eagle_streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): What is `streamer` elsewhere.
        eagle_synced_gpus (`bool`, *optional*):
            What is `synced_gpus` elsewhere; by default `True` where the target's weights are spread over ranks.
        eagle_stop_strings (`str` or `list[str]`, *optional*), eagle_tokenizer (*optional*):
            What are `stop_strings` and `tokenizer` elsewhere.

    Returns:
        [`EagleGenerateOutput`] or `torch.LongTensor` of shape `(batch_size, length)`

    Raises:
        `ValueError`: if there is no head, it does not fit, the call cannot be drafted, or an argument of `generate` was
            passed that `transformers` does not hand on.

    Example:

    ```python
    >>> target.generate(**inputs, custom_generate=eagle_hf.decode, eagle_draft=draft)  # doctest: +SKIP
    ```
    """
    _refuse_dropped_arguments()
    options = {name: model_kwargs.pop(name) for name in list(model_kwargs) if is_draft_option(name)}
    written = written_options(options, generation_config, model.generation_config)
    _check_mode(model, generation_config, written)
    refuse_name(eagle_draft)
    draft = getattr(eagle_draft, "_orig_mod", eagle_draft)  # `torch.compile` wraps
    if not isinstance(draft, EagleDraftModel):
        raise ValueError(
            f"Got {type(eagle_draft).__name__} as `eagle_draft`, but `eagle_hf.decode` drafts with an EAGLE head. Pass "
            "`generate(..., custom_generate=eagle_hf.decode, eagle_draft=EagleDraftModel.from_pretrained(...))`."
        )
    check_call(model, draft, generation_config, written)
    if eagle_stop_strings is not None:
        if eagle_tokenizer is None:
            raise ValueError(
                "Got `eagle_stop_strings` without `eagle_tokenizer`, which says what the text of a token is. Pass the "
                "target's tokenizer as `eagle_tokenizer`."
            )
        criterion = StopStringCriteria(stop_strings=eagle_stop_strings, tokenizer=eagle_tokenizer)
        stopping_criteria = StoppingCriteriaList([*stopping_criteria, criterion])
    if eagle_streamer is not None:
        eagle_streamer.put(input_ids.cpu())
    return eagle_decoding(
        model,
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        draft=draft,
        written=written,
        synced_gpus=is_spread_over_ranks(model) if eagle_synced_gpus is None else eagle_synced_gpus,
        streamer=eagle_streamer,
        **model_kwargs,
    )


def _with_draft_options(signature: inspect.Signature) -> inspect.Signature:
    """
    Adds the draft options to a signature: `generate` hands a callable those keywords alone that its signature names.
    """
    *named, rest = signature.parameters.values()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in (*DraftOptions.__dataclass_fields__, *OTHER_WORDS)
    ]
    return signature.replace(parameters=[*named, *options, rest])


decode.__signature__ = _with_draft_options(inspect.signature(decode))  # type: ignore[attr-defined]

_NAMES = {
    "assistant_model": "eagle_draft",
    "streamer": "eagle_streamer",
    "synced_gpus": "eagle_synced_gpus",
    "stop_strings": "eagle_stop_strings",
    "tokenizer": "eagle_tokenizer",
}


def generate_with_head(model: PreTrainedModel, draft: EagleDraftModel, *args: Any, **kwargs: Any) -> Any:
    """
    Calls `model.generate(...)` with [`decode`], whatever the call names arguments: what `custom_generate/generate.py`
    of a repository does.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        args, kwargs: As of `generate`.

    Raises:
        `ValueError`: if the call brings another assistant.
    """
    names = list(inspect.signature(GenerationMixin.generate).parameters)[1:]  # `self` is the model
    arguments = dict(zip(names, args, strict=False)) | kwargs
    for name in ("assistant_model", "assistant_tokenizer"):
        if arguments.pop(name, None) is not None:
            raise ValueError(
                f"Got `{name}`, but this way to generate brings an EAGLE head of its own. Leave it out, or generate "
                "without `custom_generate`."
            )
    config = arguments.get("generation_config")
    if config is not None and config.stop_strings is not None and arguments.get("stop_strings") is None:
        arguments["stop_strings"] = config.stop_strings
        arguments["generation_config"] = _without_stop_strings(config)
    if arguments.get("stop_strings") is None:
        arguments.pop("tokenizer", None)  # nobody needs it, and `generate` would not take it by our name
    for name, ours in _NAMES.items():
        if (value := arguments.pop(name, None)) is not None:
            arguments[ours] = value
    arguments |= {"custom_generate": decode, "eagle_draft": draft}
    return type(model).generate(model, **arguments)  # not that of the instance, which may be what calls this


def _without_stop_strings(config: GenerationConfig) -> GenerationConfig:
    copied = GenerationConfig.from_dict(config.to_dict())
    for name, value in vars(config).items():  # what `to_dict` leaves out
        setattr(copied, name, value)
    copied.stop_strings = None
    return copied


def _check_mode(model: PreTrainedModel, generation_config: GenerationConfig, written: Mapping[str, Any]) -> None:
    """
    Checks that the call asks for what drafts go with, which `generate` leaves to the callable.

    Raises:
        `ValueError`: if it asks for beams, or another way to draft.
    """
    config = CallConfig(model, vars(generation_config))
    if (mode := config.other_mode()) is not None:
        raise ValueError(
            f"The call asks for {mode}, but `custom_generate=eagle_hf.decode` goes with greedy search or sampling. "
            "Leave one of the two out."
        )
    if (name := config.other_drafter(written)) is not None:
        raise ValueError(
            f"Got `{name}`, which asks for another way to draft or to verify, together with "
            "`custom_generate=eagle_hf.decode`. Leave one of the two out."
        )


def _refuse_dropped_arguments() -> None:
    """
    Checks that the call names no argument that `generate` drops where it is given a callable.

    Raises:
        `ValueError`: naming these, and what to pass instead.
    """
    dropped = [name for name, value in _arguments_of_generate().items() if name in _DROPPED and value is not None]
    if dropped:
        ours = ", ".join(f"`{_NAMES[name]}`" for name in dropped)
        raise ValueError(
            f"Got {', '.join(f'`{name}`' for name in dropped)}, which `transformers` does not hand on to a "
            f"`custom_generate` callable. Use {ours} instead."
        )


_DROPPED = ("assistant_model", "streamer", "synced_gpus")


def _arguments_of_generate() -> Mapping[str, Any]:
    """
    Returns the arguments of the `generate` that is running. There is no other way to see what was passed and not handed
    on: they are read from its frame, only to be refused, and nothing works by them.
    """
    frame = sys._getframe()
    code = inspect.unwrap(GenerationMixin.generate).__code__
    while (caller := frame.f_back) is not None:
        if caller.f_code is code:
            return caller.f_locals
        frame = caller
    return {}


def is_spread_over_ranks(model: PreTrainedModel) -> bool:
    """
    Checks whether every forward takes all ranks; what `generate` finds out for its own loops, and keeps to itself.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    is_spread = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
    return bool(is_spread) and torch.distributed.get_world_size() > 1
