"""A target and its draft, loaded once and run with and without the draft."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..data.prompts import encode_messages, encode_prompt, encode_with_images
from ..generation.converted_heads import align_draft
from ..generation.output import EagleGenerateOutput
from ..head.modeling_eagle import EagleDraftModel
from ..loading.targets import check_target, file_options, load_target, load_tokenizer
from ..tree import DraftTree


@dataclass(frozen=True)
class Run:
    """
    One generation.

    Args:
        prompt_length (`int`): Tokens of the prompt.
        tokens (`list[int]`): New tokens.
        seconds (`float`): Wall time, the prompt's forward included.
        output ([`EagleGenerateOutput`], *optional*): With a draft: what `generate` returned.
    """

    prompt_length: int
    tokens: list[int]
    seconds: float
    output: EagleGenerateOutput | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of wall time."""
        return len(self.tokens) / self.seconds

    @property
    def acceptance_lengths(self) -> list[int]:
        """Tokens that each verification added."""
        lengths = self.output.acceptance_lengths if self.output is not None else None
        return lengths[0] if lengths else []

    def deepest_step(self, max_depth: int | None = None) -> tuple[DraftTree, list[int]] | None:
        """
        Returns the draft tree whose accepted path was longest, and this path; `None` if no trees were returned.

        Args:
            max_depth (`int`, *optional*): Rather one that is no deeper, as those with looked-up paths are.
        """
        trees = self.output.draft_trees if self.output is not None else None
        if not trees:
            return None
        drawn = [step for step in trees if max_depth is None or step[0].max_depth <= max_depth]
        tree, paths = max(drawn or trees, key=lambda step: len(step[1][0]))
        return tree, paths[0]


@dataclass(frozen=True)
class Pair:
    """
    Holds a target with its draft and its tokenizer.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): Its draft.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
    """

    target: PreTrainedModel
    draft: EagleDraftModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, target: str, draft: str, **options: Any) -> "Pair":
        """Loads both from the Hub or from folders; `options` are those of [`~eagle_hf.loading.load_target`]."""
        check_target(target, **file_options(options))
        head = EagleDraftModel.from_pretrained(draft)  # before the target: a wrong head is found out sooner
        model = load_target(target, **options)
        head = align_draft(model, head)  # once, and not in every call
        return cls(model, head, load_tokenizer(target, **file_options(options)))

    def encode(self, prompt: str, raw: bool = False) -> torch.Tensor:
        """
        Returns the token ids of a prompt, of shape `(1, length)`; as a user's turn of the chat template unless `raw`.
        """
        return encode_prompt(self.tokenizer, prompt, raw).to(self.target.device)

    def encode_messages(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Returns the token ids of a conversation and the beginning of its next answer, of shape `(1, length)`."""
        return encode_messages(self.tokenizer, messages).to(self.target.device)

    def encode_with_images(
        self, processor: Any, prompt: str, paths: Sequence[Path], raw: bool = False
    ) -> dict[str, torch.Tensor]:
        """Returns what the target takes for a prompt with images from files, on its device and in its dtype."""
        from PIL import Image

        images = [Image.open(path).convert("RGB") for path in paths]
        inputs = encode_with_images(processor, prompt, images, raw)
        return {
            name: value.to(self.target.device, self.target.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }

    def run(
        self,
        input_ids: torch.Tensor,
        with_draft: bool,
        seed: int = 0,
        streamer: BaseStreamer | None = None,
        inputs: Mapping[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> Run:
        """
        Generates once; `inputs` are what the target reads besides `input_ids`, such as images, and `options` those of
        `generate`.
        """
        torch.manual_seed(seed)
        start = time.perf_counter()
        output = self.target.generate(
            input_ids,
            **({"attention_mask": torch.ones_like(input_ids)} | dict(inputs or {})),
            assistant_model=self.draft if with_draft else None,
            streamer=streamer,
            return_dict_in_generate=True,
            **options,
        )
        tokens = output.sequences[0, input_ids.shape[1] :].tolist()  # waits for the device
        seconds = time.perf_counter() - start
        return Run(input_ids.shape[1], tokens, seconds, output if with_draft else None)
