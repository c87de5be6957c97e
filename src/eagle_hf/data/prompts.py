"""Turns prompts into tokens: as a user's turn of the chat template, where there is one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool = False) -> torch.Tensor:
    """
    Returns the token ids of a prompt, of shape `(1, prompt_length)`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        prompt (`str`): The prompt.
        raw (`bool`, *optional*, defaults to `False`): Whether to leave out the chat template, as where there is none.
    """
    if raw or tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}])


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """
    Returns the token ids of a conversation and the beginning of its next answer, of shape `(1, length)`.

    Raises:
        `jinja2.TemplateError`: if the chat template refuses the conversation.
    """
    text = render(tokenizer, messages)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


def encode_with_images(
    processor: Any, prompt: str, images: Sequence[Any], raw: bool = False
) -> dict[str, torch.Tensor]:
    """
    Returns what a multimodal target takes for a prompt with images: `input_ids` and `attention_mask` of shape
    `(1, prompt_length)`, and the images as its processor makes them.

    Args:
        processor ([`~transformers.ProcessorMixin`]): The target's.
        prompt (`str`): The prompt. Without a chat template it may say where the images stand (`processor.image_token`);
            else they stand before it.
        images (`Sequence[PIL.Image.Image]`): The images.
        raw (`bool`, *optional*, defaults to `False`): Whether to leave out the chat template, as where there is none.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if raw or template is None:
        token = getattr(processor, "image_token", None)
        if token is not None and token not in prompt:
            prompt = token * len(images) + prompt
        return dict(processor(images=list(images), text=prompt, return_tensors="pt"))
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    """
    Renders a conversation and the beginning of its next answer, in the form that the chat template reads.

    Raises:
        `jinja2.TemplateError`: if the chat template refuses the conversation.
    """
    return _apply(tokenizer, in_parts(messages) if reads_only_parts(tokenizer) else messages)


def reads_only_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """
    Returns whether the chat template reads a content only as a list of parts, as those of some multimodal targets do:
    they silently leave a plain text out, or fail.
    """
    probe = [{"role": "user", "content": "question"}]
    return not _says(tokenizer, probe) and _says(tokenizer, in_parts(probe))


def in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages whose texts are the only part of their contents."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


def _says(tokenizer: PreTrainedTokenizerBase, probe: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return "question" in _apply(tokenizer, probe)
    except (TemplateError, TypeError, KeyError, AttributeError):
        return False


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
