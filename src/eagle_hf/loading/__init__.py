"""Loads targets, tokenizers and processors as commands and Python take them."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .targets import load_processor, load_target, load_tokenizer

__all__ = ["load_processor", "load_target", "load_tokenizer"]

__getattr__, __dir__ = lazy_names(__name__, {"targets": ("load_processor", "load_target", "load_tokenizer")})
