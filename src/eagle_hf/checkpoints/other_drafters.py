"""Drafters that are no EAGLE heads: recognised, so that the error says what they are and what runs them."""

from typing import Any

import torch


_DFLASH = (
    "is a DFlash drafter, which drafts a block at once. `transformers` runs such drafters itself: load it with "
    "`AutoModel.from_pretrained` (with `trust_remote_code=True` where the repository brings the class) "
    "and call `target.generate(..., assistant_model=drafter, speculation_type='dflash')`"
)
_MTP = (
    "holds multi-token prediction (MTP) layers, which belong to their target. `transformers` runs them itself where "
    "the target's repository has them: `target.generate(..., use_mtp=True)`"
)
_MEDUSA = "holds Medusa heads, which neither `transformers` nor this library runs. Use the authors' code or vLLM"
_MLP = "is an MLP speculator, which neither `transformers` nor this library runs. Use vLLM"
_GEMMA = (
    "is an assistant of Gemma's own kind. `transformers` runs it itself: load it with `AutoModelForCausalLM` and call "
    "`target.generate(..., assistant_model=assistant)`"
)
_MODEL = (
    "is a whole language model. `transformers` drafts with such a model itself: load it with `AutoModelForCausalLM` "
    "and call `target.generate(..., assistant_model=model)`"
)
_ADAPTER = "is an adapter (LoRA or similar) and no drafter. Load it with `peft`"


def recognise(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> str | None:
    """
    Returns what a repository holds that is no EAGLE head, and what runs it; `None` if it may be one.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    names = {name.removeprefix("model.") for name in weights}
    kind = str(config.get("speculators_model_type") or "").lower()
    model_type = str(config.get("model_type") or "").lower()
    architecture = " ".join(map(str, config.get("architectures") or [])).lower()
    if "hidden_norm.weight" in names or kind.startswith("dflash") or "dflash" in architecture + model_type:
        return _DFLASH
    if "dflash_config" in config or model_type == "muse_glimmer_assistant":
        return _DFLASH
    is_mtp_layer = any(name.startswith(("mtp_layers.", "mtp.")) or ".eh_proj." in f".{name}" for name in names)
    if is_mtp_layer or kind == "mtp" or "mtp" in architecture:
        return _MTP
    if "medusa_num_heads" in config or "medusa" in model_type + architecture or "0.0.linear.weight" in names:
        return _MEDUSA
    if model_type == "mlp_speculator" or kind == "mlp" or "mlpspeculator" in architecture:
        return _MLP
    if "assistant" in model_type and "gemma" in model_type:
        return _GEMMA
    if kind not in ("", "eagle3", "peagle"):
        return f"is a speculator of kind {kind!r}, which this library does not run. The library speculators and vLLM do"
    if any("lora_" in name for name in names):
        return _ADAPTER
    has_plain_layers = any(name.endswith("layers.0.self_attn.q_proj.weight") for name in names)
    if has_plain_layers and "fc.weight" not in names and _reads_one_vector(config, weights):
        return _MODEL
    return None


def _reads_one_vector(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    first = next(t for name, t in weights.items() if name.endswith("layers.0.self_attn.q_proj.weight"))
    return first.dim() == 2 and first.shape[1] == config.get("hidden_size")
