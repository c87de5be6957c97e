"""
The dtype of the targets that tests take: float32, or what `EAGLE_HF_TARGET_DTYPE` names, as in `make test-bf16`.
Nothing else in the tests asks for it.

Every target that a test makes or loads without naming a dtype gets it, heads follow their targets. In half precision a
text is only the same token for token if a node of a tree is rounded as a token alone is. Products over rows are, on a
CPU (`test_target_dtype.py`); attention is not, and computes in double precision here, rounded once at its end.
"""

import os
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eagle_hf import EagleDraftModel


NAME = os.environ.get("EAGLE_HF_TARGET_DTYPE", "float32")
TARGET_DTYPE: torch.dtype = getattr(torch, NAME)


def install() -> None:
    """Lets all targets that come have the dtype. Does nothing for float32."""
    if NAME == "float32":
        return
    post_init, from_pretrained = PreTrainedModel.post_init, PreTrainedModel.from_pretrained.__func__

    def made(self: PreTrainedModel) -> None:
        post_init(self)
        if next(self.parameters(), torch.empty(0)).device.type != "meta":
            _cast(self)

    def loaded(cls: type, *args: Any, **kwargs: Any) -> Any:
        model = from_pretrained(cls, *args, **kwargs)
        if kwargs.get("dtype", "auto") in ("auto", None):
            _cast(model[0] if isinstance(model, tuple) else model)
        return model

    PreTrainedModel.post_init = made
    PreTrainedModel.from_pretrained = classmethod(loaded)
    torch.nn.functional.scaled_dot_product_attention = exact_attention


def _cast(model: PreTrainedModel) -> None:
    """Weights only, as loading in another dtype does: rotary frequencies and other buffers stay."""
    if isinstance(model, EagleDraftModel):
        return
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(TARGET_DTYPE)


_attention = torch.nn.functional.scaled_dot_product_attention


def exact_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask=None, **kwargs: Any):
    """As the function of PyTorch, computed in double precision where its inputs are in half precision."""
    if query.dtype not in (torch.bfloat16, torch.float16):
        return _attention(query, key, value, attn_mask=attn_mask, **kwargs)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.double()
    output = _attention(query.double(), key.double(), value.double(), attn_mask=attn_mask, **kwargs)
    return output.to(query.dtype)


def closeness(expected: torch.Tensor, float32: float) -> dict[str, float]:
    """
    Tolerances for `torch.testing.assert_close`: `float32` in float32, in half precision some roundings of the largest
    number, whichever of the operations before has made them.
    """
    if NAME == "float32":
        return {"atol": float32, "rtol": float32}
    return {"atol": 4 * torch.finfo(TARGET_DTYPE).eps * expected.abs().max().item(), "rtol": 0.0}


def skip_exceptions(items: list[pytest.Item]) -> None:
    """Skips the tests that cannot run with such targets, each with its reason (`bfloat16_exceptions.py`)."""
    if NAME == "float32":
        return
    from bfloat16_exceptions import reason_of  # noqa: PLC0415

    for item in items:
        if reason := reason_of(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=f"float32 only: {reason}"))
