"""Measuring one prompt: every method on it, in turns, and what its texts and trees say."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import encode_messages
from ..draft_options import DraftOptions
from ..head.modeling_eagle import EagleDraftModel
from ..target.config import TargetConfig
from .acceptance import chain_trials, confidence_bins
from .methods import EAGLE, PLAIN, Method
from .settings import BenchmarkSettings
from .tasks import Message, Prompt
from .ties import first_difference, is_near_tie
from .timing import count_forwards, timed


class CannotMeasure(ValueError):
    """Says why a prompt is left out."""


class Measuring:
    """
    Measures prompts with one target.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        methods (`Sequence[Method]`): What to measure, plain `generate` among them.
        settings ([`BenchmarkSettings`]): How.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: EagleDraftModel,
        tokenizer: PreTrainedTokenizerBase,
        methods: Sequence[Method],
        settings: BenchmarkSettings,
    ):
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        self.methods = list(methods)
        self.settings = settings

    def encode(self, messages: Sequence[Message]) -> torch.Tensor:
        """
        Returns the token ids of a dialogue, of shape `(1, length)`, up to where the target answers; the plain texts,
        line by line, where there is no chat template.

        Raises:
            [`CannotMeasure`]: if the chat template refuses it, or it and its answer exceed the target's positions.
        """
        if self.tokenizer.chat_template is None:
            ids = self.tokenizer("\n".join(message["content"] for message in messages), return_tensors="pt").input_ids
        else:
            try:
                ids = encode_messages(self.tokenizer, messages)
            except TemplateError as error:
                raise CannotMeasure(f"the chat template refuses it: {error}") from error
        limit = TargetConfig(self.target.config).num_positions
        if limit and ids.shape[1] + self.settings.max_new_tokens > limit:
            raise CannotMeasure(
                f"{ids.shape[1]} tokens of prompt and {self.settings.max_new_tokens} new ones exceed the {limit} "
                "positions of the target"
            )
        return ids.to(self.target.device)

    def warm_up(self, prompt: Prompt) -> dict[str, str]:
        """
        Warms up every method. Baselines that cannot are not measured any further.

        Returns:
            `dict[str, str]`: Why, by baseline.
        """
        ids = self.encode(prompt.turns[0])
        left_out = {}
        for method in list(self.methods):
            for temperature in self.settings.temperatures:
                try:
                    for _ in range(self.settings.warm_up or (not method.is_eagle and method.name != PLAIN)):
                        self._generate(method, ids, temperature, seed=0)
                except Exception as error:
                    if method.is_eagle or method.name == PLAIN:
                        raise
                    left_out[method.name] = _in_one_line(error)
                    self.methods.remove(method)
                    break
        return left_out

    def measure(self, prompt: Prompt, temperature: float) -> dict[str, Any]:
        """
        Measures a prompt at a temperature. Methods take turns, each time in another order; all get the same prompt,
        whose earlier answers are those of plain `generate`.

        Returns:
            `dict`: The record. `skipped` says why a later turn was left out.

        Raises:
            [`CannotMeasure`]: if nothing of it can be measured.
        """
        record: dict[str, Any] = {
            "task": prompt.task,
            "digest": prompt.digest,
            "place": prompt.place,
            "temperature": temperature,
            "turns": [],
        }
        messages: list[Message] = []
        for turn in prompt.turns:
            messages += turn
            try:
                ids = self.encode(messages)
            except CannotMeasure as error:
                if not record["turns"]:
                    raise
                record["skipped"] = f"turn {len(record['turns']) + 1}: {error}"
                break
            measured = self._measure_turn(ids, temperature, self.settings.seed + prompt.number)
            record["turns"].append(measured)
            answer = self.tokenizer.decode(measured["tokens"], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})
        return record

    def _measure_turn(self, ids: torch.Tensor, temperature: float, seed: int) -> dict[str, Any]:
        results: dict[str, dict[str, Any]] = {method.name: {"seconds": []} for method in self.methods}
        texts: dict[str, list[list[int]]] = {method.name: [] for method in self.methods}
        for repeat in range(self.settings.repeats):
            first = repeat % len(self.methods)
            for method in [*self.methods[first:], *self.methods[:first]]:
                result = results[method.name]
                if "error" in result:
                    continue
                try:
                    seconds, output, forwards = self._generate(method, ids, temperature, seed)
                except Exception as error:  # foreign code fails in many ways; it is named, and no average is made
                    if method.is_eagle or method.name == PLAIN:
                        raise
                    results[method.name] = {"error": _in_one_line(error)}
                    continue
                result["seconds"].append(round(seconds, 6))
                result["target_forwards"] = forwards
                texts[method.name].append(output.sequences[0, ids.shape[1] :].tolist())
                if method.is_eagle:
                    result["draft_forwards"] = output.draft_forwards
                    result["acceptance_lengths"] = output.acceptance_lengths[0]
        plain = texts[PLAIN][0]
        for method in self.methods:
            if "error" not in results[method.name]:
                results[method.name] |= self._compare(ids, plain, texts[method.name], temperature)
        turn = {"prompt_length": ids.shape[1], "seed": seed, "tokens": plain, "methods": results}
        return turn | (self._metrics(ids, temperature, seed) if self.settings.metrics else {})

    def _generate(self, method: Method, ids: torch.Tensor, temperature: float, seed: int) -> tuple[float, Any, int]:
        sampling = self.settings.sampling(temperature)
        options = {"max_new_tokens": self.settings.max_new_tokens, **sampling, **method.options}
        options["draft"] = options.pop("assistant_model", None)
        if method.draft_config is not None:
            options |= DraftOptions.from_generation_config(method.draft_config, self.draft.device.type).to_keywords()
            options["draft"] = self.draft
        with nullcontext([0]) if method.is_eagle else count_forwards(self.target) as count:
            seconds, output = timed(self.target, ids, seed=seed, **options)
        return seconds, output, output.target_forwards if method.is_eagle else count[0]

    def _compare(
        self, ids: torch.Tensor, plain: list[int], texts: list[list[int]], temperature: float
    ) -> dict[str, Any]:
        """
        Checks whether all texts of a method are that of plain `generate`, and where the first that is not parts from
        it.
        """
        facts: dict[str, Any] = {"num_tokens": len(texts[0]), "equal": True}
        for text in texts:
            if (place := first_difference(plain, text)) is not None:
                is_tie = temperature == 0 and is_near_tie(self.target, ids, plain, text, place)
                return facts | {"equal": False, "first_difference": place, "is_tie": is_tie, "tokens": text}
        return facts

    def _metrics(self, ids: torch.Tensor, temperature: float, seed: int) -> dict[str, Any]:
        """Returns the trials of n-alpha, with chains, and confidence against acceptance, with the head's own tree."""
        own = next(method.draft_config for method in self.methods if method.name == EAGLE)
        options = replace(DraftOptions.from_generation_config(own), output_draft_trees=True)
        depth = self.settings.chain_depth
        chain = DraftOptions(draft_tree="chain", num_assistant_tokens=depth, draft_depth=depth, output_draft_trees=True)
        trees = [
            self._generate(Method(EAGLE, draft_config=o.to_generation_config()), ids, temperature, seed)[1].draft_trees
            for o in (options, chain)
        ]
        return {"confidence": confidence_bins(trees[0]), "chains": chain_trials(trees[1], depth)}


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
