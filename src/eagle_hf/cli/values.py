"""Values of options, checked while the command line is read: nothing is loaded for a typing error."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


def dtype(text: str) -> "str | torch.dtype":
    """Reads a dtype by any of its names."""
    from ..loading.dtypes import parse_dtype

    try:
        return parse_dtype(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def integer(minimum: int) -> Callable[[str], int]:
    """Reads a whole number that is at least `minimum`."""

    def read(text: str) -> int:
        if (number := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"{number} is too small: at least {minimum}")
        return number

    read.__name__ = "whole number"  # argparse names it where `int` fails
    return read


def temperature(text: str) -> float:
    """Reads a temperature: 0 or more."""
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"{text} is no temperature: 0 is greedy, more is sampled")
    return number


def top_p(text: str) -> float:
    """Reads a probability above 0."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no probability above 0 and up to 1")
    return number


def device_map(text: str) -> str | dict[str, Any]:
    """Reads a device, a strategy such as `auto`, or a JSON object of modules and devices."""
    return _json_object(text) if text.lstrip().startswith("{") else text


def max_memory(text: str) -> dict[Any, Any]:
    """Reads `0=20GiB,cpu=60GiB`, or a JSON object: memory by device."""
    if text.lstrip().startswith("{"):
        memory = _json_object(text)
    else:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(device and amount for device, _, amount in pairs):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0=20GiB,cpu=60GiB")
        memory = {device.strip(): amount.strip() for device, _, amount in pairs}
    return {int(device) if device.isdigit() else device: amount for device, amount in memory.items()}


def image(text: str) -> Path:
    """Reads the path of an image. Nothing is fetched from the net."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: images are read from files, not from addresses")
    return Path(text).expanduser()


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
