"""
Heads as they draft: in the dtype and on the device of their target, while the user's head stays as it is.

Where both agree already, the head itself drafts, and nothing is kept. Where they do not, a converted copy is kept
beside the head, one per dtype and device. It lives as long as the head, is made anew when the head has changed, and is
dropped by [`~eagle_hf.forget`]:

```text
head of the user, float32, CPU  ──┬── copy, bfloat16, cuda:0    for targets in bfloat16 on cuda:0
                                  └── copy, float16, cuda:0     for targets in float16 there
```
"""

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel
from transformers.utils import logging

from ..fast.fingerprint import state_of
from ..head.modeling_eagle import EagleDraftModel
from ..target.modules import input_device


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Fingerprint:
    """
    Records what a head was like when it was copied.

    Args:
        structure (`tuple`): Its modules and their attributes, and where which version of its tensors was.
        samples (`list[torch.Tensor]`): Some values of them, per device.
    """

    structure: tuple
    samples: list[torch.Tensor]

    def agrees(self, other: "_Fingerprint") -> bool:
        """Checks whether two fingerprints are of the same head."""
        return self.structure == other.structure and all(map(torch.equal, self.samples, other.samples))


@dataclass(frozen=True)
class _Copy:
    head: EagleDraftModel
    fingerprint: _Fingerprint


# By head, then by dtype and device.
_COPIES: WeakKeyDictionary[EagleDraftModel, dict[tuple[torch.dtype, torch.device], _Copy]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def align_draft(model: PreTrainedModel, draft: EagleDraftModel) -> EagleDraftModel:
    """
    Returns the head as it drafts for a target: in the target's dtype and on its device, unless the user chose these
    when loading it. The head that was given is not changed.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.

    Returns:
        [`EagleDraftModel`]: `draft` itself where it is so already; otherwise a copy in evaluation mode, the same one as
        long as the head does not change.
    """
    dtype = draft.dtype if draft.has_explicit_dtype else model.dtype
    device = draft.device if draft.has_explicit_device else input_device(model)
    agrees = (dtype, device) == (draft.dtype, draft.device) and not _drops_out(draft)
    if agrees and draft not in _COPIES:
        return draft
    with _LOCK:
        fingerprint = _fingerprint(draft)
        known = _COPIES.setdefault(draft, {})
        for key in [key for key, copied in known.items() if not copied.fingerprint.agrees(fingerprint)]:
            del known[key]
        if agrees:
            return draft
        if (dtype, device) not in known:
            logger.info(
                f"Copying the draft from {draft.dtype} on {draft.device} to {dtype} on {device}, as its target."
            )
            known[dtype, device] = _Copy(_converted(draft, dtype, device), fingerprint)
        return known[dtype, device].head


def forget_copies(draft: Any) -> None:
    """Drops the converted copies of a head."""
    _COPIES.pop(draft, None)


def _drops_out(draft: EagleDraftModel) -> bool:
    """Checks whether forwards of the head are random, as those of adapters in training may be."""
    return draft.training and any(isinstance(module, _DropoutNd) and module.p > 0 for module in draft.modules())


@torch.inference_mode(False)  # the copy outlives a caller's inference mode
@torch.no_grad()
def _converted(draft: EagleDraftModel, dtype: torch.dtype, device: torch.device) -> EagleDraftModel:
    """
    Returns a copy of a head in which the floating-point parameters have another dtype; tensors that are as they should
    be are shared with the head. Buffers keep their dtype: frequencies of rotary embeddings are no weights.
    """
    # What `deepcopy` finds in its memo it takes from there: tensors never exist in both dtypes on one device.
    memo: dict[int, Any] = {id(each): each for each in (draft.config, draft.generation_config)}
    if "_compiled_functions" in draft.__dict__:
        memo[id(draft.__dict__["_compiled_functions"])] = {}
    for parameter in draft.parameters():
        if type(parameter) is nn.Parameter:
            wanted = dtype if parameter.is_floating_point() else parameter.dtype
            memo[id(parameter)] = nn.Parameter(parameter.detach().to(device, wanted), requires_grad=False)
    for buffer in draft.buffers():
        memo[id(buffer)] = buffer.to(device)
    converted = copy.deepcopy(draft, memo).eval()
    if any(each.device != device for each in converted.parameters()):  # of other classes than plain parameters
        converted.to(device=device)
    return converted


_NUM_SAMPLES = 1024  # values of every tensor that are compared
_NUM_SUMMED = 2**22  # values of every tensor that are summed up, which takes a CPU a millisecond


def _fingerprint(draft: EagleDraftModel) -> _Fingerprint:
    """
    Returns what tells whether a head has changed. Optimizers, `load_state_dict` and other edits in place raise the
    version of a tensor; edits of `parameter.data` do not, and are seen by the sum of its bits and some of the values,
    in large tensors of evenly spaced values alone.
    """
    tensors = list(chain(draft.parameters(), draft.buffers()))
    structure = (state_of(draft), *((id(each), each.data_ptr(), _version(each)) for each in tensors))
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for sample in _samples(tensors):
        samples.setdefault(sample.device, []).append(sample)
    return _Fingerprint(structure, [torch.cat(each) for each in samples.values()])


def _samples(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yields the bytes of evenly spaced values, which are compared as such: NaN equals itself."""
    for tensor in tensors:
        if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
            values = tensor.detach().reshape(-1)
            yield values[:: max(1, len(values) // _NUM_SAMPLES)].clone().view(torch.uint8)
            bits = values[:: -(-len(values) // _NUM_SUMMED)].view(_BITS[values.element_size()])
            yield bits.sum(dtype=torch.int64)[None].view(torch.uint8)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
