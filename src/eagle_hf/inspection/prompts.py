"""Prompts to measure acceptance on, and how they become tokens."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import encode_prompt


PROMPTS = (
    "Write a Python function that returns the largest number of a list.",
    "A shop sells pens for 3 dollars each. How much do 14 pens cost? Explain each step.",
    "What is a good way to learn to play the guitar?",
    "Explain in a few sentences why the sky is blue.",
    "Write a short letter that invites a friend to dinner.",
    "Write a function to reverse the words of a sentence.\nUse Python.",
    "Tom reads 12 pages a day. How many days does he need for a book of 300 pages?",
    "Give three reasons to eat fruit every day.",
)


def encode(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str | Sequence[int]
) -> torch.Tensor:
    """
    Returns the token ids of a prompt, of shape `(1, prompt_length)`, as a user's turn where there is a chat template.

    Raises:
        `ValueError`: if the prompt is text and there is no tokenizer.
    """
    if not isinstance(prompt, str):
        return torch.tensor([list(prompt)]).to(target.device)
    if tokenizer is None:
        raise ValueError(
            "Got a prompt as text, but no tokenizer: pass `tokenizer`, or the target by its name instead of a model, "
            "or prompts as lists of token ids."
        )
    return encode_prompt(tokenizer, prompt).to(target.device)
