"""Loads targets, tokenizers and processors as commands and Python take them."""

from .targets import load_processor, load_target, load_tokenizer


__all__ = ["load_processor", "load_target", "load_tokenizer"]
