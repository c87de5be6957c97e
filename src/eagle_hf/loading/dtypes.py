"""Names of dtypes, as people type them."""

import difflib

import torch


_NAMES = {
    torch.float16: ("float16", "fp16", "f16", "half", "16"),
    torch.bfloat16: ("bfloat16", "bf16", "b16"),
    torch.float32: ("float32", "fp32", "f32", "float", "single", "full", "32"),
    torch.float64: ("float64", "fp64", "f64", "double", "64"),
}
_BY_NAME = {name: dtype for dtype, names in _NAMES.items() for name in names}
# What is asked for in the place of a dtype, and is a way to store weights.
_STORAGE = ("int8", "int4", "uint8", "fp8", "float8", "fp4", "nf4", "8bit", "4bit", "8", "4", "q4", "q8")


def parse_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """
    Returns the dtype that a name means, however it is spelt: `float16`, `fp16`, `half`, `torch.float16`, `FP-16`.

    Args:
        dtype (`str` or `torch.dtype`, *optional*): Name or dtype of floating point numbers; `"auto"` and `None` leave
            it to the checkpoint.

    Returns:
        `torch.dtype`, or `"auto"`.

    Raises:
        `ValueError`: naming those that are known and, where one is close, which was probably meant.
    """
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        if dtype not in _NAMES:
            raise ValueError(f"Got dtype {dtype}, in which models do not compute. {_known()}")
        return dtype
    name = str(dtype).strip().lower().removeprefix("torch.").replace("-", "").replace("_", "")
    if name == "auto":
        return "auto"
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _STORAGE or name.startswith("float8"):
        raise ValueError(
            f"Got dtype {dtype!r}, in which models do not compute. To store weights so, quantise the target: "
            f"`--quantization`, or `quantization_config` in Python. {_known()}"
        )
    close = difflib.get_close_matches(name, [*_BY_NAME, "auto"], n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"Got dtype {dtype!r}, which is none that is known. {hint}{_known()}")


def _known() -> str:
    return f"Known: auto, {', '.join(' = '.join(names[:2]) for names in _NAMES.values())}."
