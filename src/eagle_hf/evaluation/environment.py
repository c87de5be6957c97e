"""Describes what figures depend on: hardware, versions, weights."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub.measurements import current_versions


def cpu_name() -> str:
    """Returns what the machine calls its processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: torch.device) -> str:
    """Returns the device, and the processor with its threads."""
    cpu = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda}), {cpu}"
    return cpu if device.type == "cpu" else f"{device.type}, {cpu}"


def versions() -> dict[str, str]:
    """Returns the versions of the packages and of Python."""
    return current_versions() | {"python": platform.python_version()}


def load_average() -> float | None:
    """Returns how many processes want a processor: figures of a busy machine are worth less."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def weights_digest(model: nn.Module) -> str:
    """
    Tells weights apart without reading all of them: names, shapes and dtypes, and some values of every tensor. Training
    changes nearly every value, so that a head that was replaced in its folder is noticed.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(flat.numel() // 16, 1)][:16].double().tolist()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {some}".encode())
    return digest.hexdigest()[:16]


def describe_model(model: Any) -> dict[str, Any]:
    """Returns the name, size, dtype and weights of a model."""
    return {
        "name": str(model.config.name_or_path),
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": weights_digest(model),
    }
