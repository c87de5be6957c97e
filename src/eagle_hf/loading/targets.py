"""
Loading targets: one way for all commands and for Python. A target is a folder or a repository that holds a language
model, a multimodal model, an adapter for one of them, or GGUF files.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_gguf_available, is_peft_available, logging

from ..checkpoints import own
from ..checkpoints.sources import NotReached, expand, find_file, list_files
from .dtypes import parse_dtype
from .quantization import quantization_config as make_quantization_config


logger = logging.get_logger(__name__)

_HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")
# Weights of layers, embeddings and output, and those of what reads images or sound beside them.
_DECODER = re.compile(r"\.\d+\.|(lm_head|embed_tokens|embed_out|embed_in|wte|word_embeddings)\.weight$")
_TOWER = re.compile("vision|visual|audio|image|speech")
# What a checkpoint of a known language model may have been saved for instead.
_OTHER_TASKS = ("ForMaskedLM", "ForPreTraining", "Classification", "ForQuestionAnswering", "ForMultipleChoice")
# Those that prepend virtual tokens, or hidden states of their own: columns of the cache that no token stands for.
_PROMPT_LEARNING = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")


def load_target(
    target: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = "auto",
    device_map: str | dict[str, Any] | torch.device | int | None = None,
    gguf_file: str | None = None,
    quantization: str | None = None,
    quantization_config: Any | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    Loads a target, whatever it is: a causal language model, a multimodal one, a base model with its adapter, or a GGUF
    file.

    The class is the one that the checkpoint names (`architectures`) where `transformers` loads that one for text or for
    images and text: nothing of the checkpoint is left out or renamed, so that the text is that of the model as it was
    saved. Where it names none of both, the multimodal class is taken, which reads prompts with and without images.

    Args:
        target (`str` or `os.PathLike`):
            Repository id on the Hub, or a folder: of a model, or of a PEFT adapter (`adapter_config.json`), whose base
            is loaded as well. Or a local `.gguf` file.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): See [`~eagle_hf.loading.dtypes.parse_dtype`].
        device_map (`str`, `dict`, `torch.device` or `int`, *optional*): As in `transformers`. The CPU by default.
        gguf_file (`str`, *optional*):
            A GGUF file of the repository or folder. Its weights are dequantised, unless `quantization_config` is a
            `GgufConfig` that says otherwise.
        quantization (`str`, *optional*): One of [`~eagle_hf.loading.quantization.QUANTIZATIONS`], such as `"bnb-4bit"`.
        quantization_config (*optional*): A configuration of `transformers` instead.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code of the repository may be run, where `transformers` does not know the model.
        kwargs:
            `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`, and whatever else
            `from_pretrained` takes, such as `attn_implementation`, `max_memory` or `offload_folder`.

    Returns:
        [`~transformers.PreTrainedModel`] in evaluation mode.

    Raises:
        `OSError`: if there is no such folder, the Hub was not reached or does not show the repository, files or weights
            are missing, or `target` is an EAGLE head.
        `ValueError`: if the model is of a kind that does not write text token by token, is unknown, or needs its own
            code; or an option is unknown.
        `ModuleNotFoundError`: if a package is missing for adapters, GGUF files or a quantisation; names it.

    Example:

    ```python
    >>> import eagle_hf

    >>> target = eagle_hf.loading.load_target("hub_cards/demo-llama-10m", dtype="bf16")  # doctest: +SKIP
    ```
    """
    dtype = parse_dtype(dtype)
    target, gguf_file = _split_gguf(target, gguf_file)
    hub_kwargs = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
    base, base_kwargs, adapter = _resolve_adapter(target, hub_kwargs)
    config = _read_config(base, gguf_file, trust_remote_code, base_kwargs)
    auto_class = _auto_class(base, config, trust_remote_code)
    own_quantization = getattr(config, "quantization_config", None)
    if own_quantization is not None and quantization is not None:
        raise ValueError(
            f"Got quantization {quantization!r}, but {base} is quantised already: {_method(own_quantization)}."
        )
    if quantization is not None and gguf_file is not None:
        raise ValueError(f"Got quantization {quantization!r} with a GGUF file, whose weights have their own.")
    if own_quantization is not None:
        logger.info(f"{base} is quantised: {_method(own_quantization)}.")
    if quantization is not None:
        compute_dtype = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
        quantization_config = make_quantization_config(quantization, compute_dtype)  # type: ignore[arg-type]
    if gguf_file is not None:
        quantization_config = quantization_config or GgufConfig(dequantize=True)
        kwargs["gguf_file"] = gguf_file
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    try:
        model, info = auto_class.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **base_kwargs,
            **kwargs,
        )
    except ImportError as error:
        if own_quantization is None:
            raise
        raise ImportError(f"{base} is quantised ({_method(own_quantization)}): {error}") from error
    _check_complete(base, info)
    if adapter is not None:
        model = _with_adapter(model, adapter, hub_kwargs)
    return model.eval()


def check_target(
    target: str | os.PathLike, *, gguf_file: str | None = None, trust_remote_code: bool = False, **hub_kwargs: Any
) -> PreTrainedConfig:
    """
    Checks what is known of a target before its weights are fetched, and returns its configuration.

    Args and errors as in [`load_target`].
    """
    target, gguf_file = _split_gguf(target, gguf_file)
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
    base, base_kwargs, _ = _resolve_adapter(target, hub_kwargs)
    config = _read_config(base, gguf_file, trust_remote_code, base_kwargs)
    _auto_class(base, config, trust_remote_code)
    return config


def reads_images(config: PreTrainedConfig) -> bool:
    """Returns whether a target of this configuration, from [`check_target`], is loaded with what reads images."""
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        return False
    auto_class = _auto_class(str(config.name_or_path), config, trust_remote_code=False)
    images = AutoModelForImageTextToText._model_mapping[type(config)]
    return auto_class._model_mapping[type(config)] is images


def file_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those options of [`load_target`] that say where files are, which [`load_tokenizer`] takes as well."""
    return {
        name: options[name]
        for name in (*_HUB_OPTIONS, "gguf_file", "trust_remote_code")
        if options.get(name) is not None
    }


def load_tokenizer(
    target: str | os.PathLike, *, gguf_file: str | None = None, trust_remote_code: bool = False, **hub_kwargs: Any
) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer of a target, with its chat template: that of an adapter where its folder has one, else that of
    its base.

    Args:
        target, gguf_file, trust_remote_code: As in [`load_target`].
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        `OSError`: as in [`load_target`], or if there is no tokenizer.
    """
    target, gguf_file = _split_gguf(target, gguf_file)
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
    source, source_kwargs = _with_tokenizer(target, hub_kwargs)
    extra = {"gguf_file": gguf_file} if gguf_file is not None else {}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **source_kwargs, **extra)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _template_of_processor(source, source_kwargs)
    return tokenizer


def load_processor(
    target: str | os.PathLike, *, gguf_file: str | None = None, trust_remote_code: bool = False, **hub_kwargs: Any
) -> Any:
    """
    Loads what turns images and text into the inputs of a multimodal target.

    Args:
        target, gguf_file, trust_remote_code: As in [`load_target`]. GGUF files have no processor.
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Returns:
        [`~transformers.ProcessorMixin`]

    Raises:
        `OSError`: as in [`load_target`], or if there is none.
        `ValueError`: for GGUF files.
    """
    if gguf_file is not None:
        raise ValueError("A GGUF file holds the language model alone, which reads no images.")
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
    base, base_kwargs, _ = _resolve_adapter(expand(target), hub_kwargs)
    return AutoProcessor.from_pretrained(base, trust_remote_code=trust_remote_code, **base_kwargs)


def _split_gguf(target: str | os.PathLike, gguf_file: str | None) -> tuple[str, str | None]:
    """Splits the path of a local GGUF file into its folder and its name."""
    target = expand(target)
    if gguf_file is None and target.lower().endswith(".gguf") and os.path.isfile(target):
        target, gguf_file = os.path.split(os.path.abspath(target))
    if gguf_file is not None and not is_gguf_available():
        raise ModuleNotFoundError("GGUF files need the package gguf: pip install 'eagle-hf[gguf]'", name="gguf")
    return target, gguf_file


def _resolve_adapter(target: str, hub_kwargs: dict[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """Returns the model itself, where from, and the adapter if `target` is one."""
    away = None
    try:
        is_model = find_file(target, "config.json", **hub_kwargs) is not None
    except NotReached as error:
        is_model, away = False, error
    path = _find_if_known(target, "adapter_config.json", hub_kwargs | ({"local_files_only": True} if away else {}))
    if path is None:
        if away is not None:
            raise away
        return target, hub_kwargs, None
    if not is_peft_available():
        raise ModuleNotFoundError(
            f"{target} is a PEFT adapter, which needs the package peft: pip install 'eagle-hf[peft]'", name="peft"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = str(config.get("peft_type")).upper()
    if kind in _PROMPT_LEARNING:
        raise ValueError(
            f"{target} is an adapter of the kind {kind}, whose virtual tokens take columns of the cache that no token "
            "stands for: drafts are not verified behind them. LoRA and other adapters of weights are."
        )
    if is_model:  # which holds its adapter
        return target, hub_kwargs, target
    base = config.get("base_model_name_or_path")
    if not base:
        raise OSError(f"{target} is an adapter, and its {path.name} does not name its `base_model_name_or_path`.")
    place = {name: hub_kwargs[name] for name in hub_kwargs if name not in ("revision", "subfolder")}
    if config.get("revision"):  # of the base, says PEFT
        place["revision"] = config["revision"]
    beside = Path(target, base)
    if not os.path.exists(base) and not os.path.isabs(base) and beside.is_dir():
        base = str(beside)
    try:
        find_file(base, "config.json", **place)
    except OSError as error:
        raise type(error)(
            f"{target} is an adapter for {base}, which cannot be loaded: {error} Its place is written in {path.name}, "
            "`base_model_name_or_path`."
        ) from error
    return base, place, target


def _with_adapter(model: PreTrainedModel, adapter: str, hub_kwargs: dict[str, Any]) -> PreTrainedModel:
    """
    Returns the model with an adapter in its layers.

    `transformers` renames weights of adapters as it does those of models, which PEFT does not, and loses the magnitudes
    of DoRA, which PEFT does not.
    """
    path = find_file(adapter, "adapter_config.json", **hub_kwargs)
    if path is not None and json.loads(path.read_text(encoding="utf-8")).get("use_dora"):
        from peft import PeftModel

        with warnings.catch_warnings():  # transformers 5.24 deprecates what PEFT asks it
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
            return PeftModel.from_pretrained(model, adapter, **hub_kwargs).get_base_model()
    info = model.load_adapter(adapter, adapter_kwargs=hub_kwargs)
    if lost := sorted({*info.missing_keys, *info.unexpected_keys}):
        raise OSError(
            f"The weights of the adapter {adapter} do not fit what its adapter_config.json says of "
            f"{model.name_or_path}: {len(lost)} tensors are missing or have no place, such as {lost[:3]}."
        )
    return model


def _find_if_known(source: str, name: str, hub_kwargs: dict[str, Any]) -> Path | None:
    """
    Returns a file that most models do not have: with the Hub away, one that is not in the cache is taken to be none.
    """
    try:
        return find_file(source, name, **hub_kwargs)
    except NotReached:
        return None


def _read_config(
    source: str, gguf_file: str | None, trust_remote_code: bool, hub_kwargs: dict[str, Any]
) -> PreTrainedConfig:
    if gguf_file is not None:
        if find_file(source, gguf_file, **hub_kwargs) is None:
            raise FileNotFoundError(f"{source} has no file {gguf_file}.{_what_is_there(source, hub_kwargs)}")
        return AutoConfig.from_pretrained(source, gguf_file=gguf_file, **hub_kwargs)
    path = find_file(source, "config.json", **hub_kwargs)
    if path is None:
        raise OSError(f"{source} has no config.json, so that it is no model.{_what_is_there(source, hub_kwargs)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise OSError(f"{path} holds a JSON {type(config).__name__}, expected an object.")
    if _is_said_to_be_head(config):
        raise OSError(_is_a_head(source))
    kind = config.get("model_type")
    if not trust_remote_code and kind not in transformers.CONFIG_MAPPING:
        if "AutoConfig" in (config.get("auto_map") or {}):
            raise ValueError(
                f"{source} brings its own code (its type {kind!r} is none of transformers), which runs only if you say "
                "so: read it, then pass `trust_remote_code=True`, or `--trust_remote_code` to a command."
            )
        raise ValueError(
            f"{source} is of the type {kind!r}, which transformers {transformers.__version__} does not know."
            + (" A newer version may: pip install -U transformers" if kind else " Its config.json has no `model_type`.")
        )
    return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **hub_kwargs)


def _auto_class(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """Returns the auto class that loads what the checkpoint was saved as."""
    classes: dict[str, Any] = {
        auto_class.__name__: auto_class
        for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
    }
    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (named := [classes[name] for name in classes if name in remote]):
        return named[0]
    fitting = [auto_class for auto_class in classes.values() if type(config) in auto_class._model_mapping]
    named_as = ", ".join(config.architectures or []) or type(config).__name__
    if not fitting or config.is_encoder_decoder or named_as.endswith(_OTHER_TASKS):
        why = "is an encoder-decoder model" if config.is_encoder_decoder else "does not write text token by token"
        raise ValueError(
            f"{source} is no target for EAGLE: a {config.model_type} model ({named_as}) {why}. Decoder-only language "
            "models are targets, such as Llama, Qwen or Gemma, also those that read images."
        )
    for auto_class in fitting:
        models = auto_class._model_mapping[type(config)]
        for model in models if isinstance(models, tuple) else (models,):
            if model.__name__ in (config.architectures or []):
                return auto_class
    return fitting[0]


def _check_complete(source: str, info: dict[str, Any]) -> None:
    """Checks that no layer is missing: one that is not in the file would be random, and `transformers` only logs it."""
    missing = sorted(name for name in info["missing_keys"] if _DECODER.search(name) and not _TOWER.search(name))
    if not missing:
        return
    if any(name.endswith(("fc.weight", "d2t")) or "midlayer." in name for name in info["unexpected_keys"]):
        raise OSError(_is_a_head(source))
    raise OSError(
        f"The weights of {source} lack {len(missing)} tensors of the decoder, such as {missing[:3]}, which would be "
        "random numbers. The files are incomplete, or of another model than config.json says."
    )


def _is_said_to_be_head(config: dict[str, Any]) -> bool:
    named = [config.get("model_type"), config.get("speculators_model_type"), *(config.get("architectures") or [])]
    return (
        own.matches(config, {}) or "draft_vocab_size" in config or any("eagle" in str(name).lower() for name in named)
    )


def _is_a_head(source: str) -> str:
    return (
        f"{source} is an EAGLE head, not a target. Swap --target and --draft if they were given the wrong way round. "
        "In Python heads are loaded by EagleDraftModel.from_pretrained."
    )


def _with_tokenizer(target: str, hub_kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """
    Returns where the tokenizer is: an adapter's folder often holds a copy, which may know more tokens than the base's.
    """
    base, base_kwargs, adapter = _resolve_adapter(target, hub_kwargs)
    if adapter is not None and _find_if_known(target, "tokenizer_config.json", hub_kwargs) is not None:
        return target, hub_kwargs
    return base, base_kwargs


def _template_of_processor(source: str, hub_kwargs: dict[str, Any]) -> str | None:
    """Returns the chat template of the processor, where older multimodal repositories keep it."""
    path = _find_if_known(source, "chat_template.json", hub_kwargs)
    return None if path is None else json.loads(path.read_text(encoding="utf-8")).get("chat_template")


def _method(quantization: Any) -> str:
    config = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = config.get("quant_method")
    bits = [f"{config[name]}" for name in ("bits", "w_bit") if config.get(name)]
    return " ".join([str(getattr(method, "value", method)), *(f"with {number} bits" for number in bits)])


def _what_is_there(source: str, hub_kwargs: dict[str, Any]) -> str:
    """Returns a hint for who named the folder above, or below, the one that was meant."""
    files = list_files(source, **hub_kwargs)
    if gguf := [name for name in files if name.endswith(".gguf")]:
        return f" It holds GGUF files: choose one with `gguf_file` (--gguf_file), such as {gguf[0]}."
    if below := sorted({str(Path(name).parent) for name in files if Path(name).name == "config.json"} - {"."}):
        return f" There is one in its folder {', '.join(below[:4])}."
    if "params.json" in files:
        return " It has a params.json, Mistral's own format, which is not read: take the repository in transformers'."
    return f" It holds {', '.join(sorted(files)[:4])}." if files else " It is empty."
