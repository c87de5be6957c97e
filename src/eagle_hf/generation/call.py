"""Reads what a call of `generate` asks for, before `transformers` has prepared it."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode


class CallConfig:
    """
    The generation config that `generate` is going to work with: every attribute is looked up where `generate` looks
    for it. Nothing is copied and nothing is logged.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        arguments (`Mapping[str, Any]`): What the call was given, by name.
    """

    def __init__(self, model: PreTrainedModel, arguments: Mapping[str, Any]):
        self._arguments = arguments
        configs = (arguments.get("generation_config"), model.generation_config)
        self._configs = [config for config in configs if config is not None]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._arguments:
            return self._arguments[name]
        values = (getattr(config, name, None) for config in self._configs)
        value = next((value for value in values if value is not None), None)
        return GenerationConfig._get_default_generation_params().get(name) if value is None else value

    def other_mode(self) -> str | None:
        """Returns what kind of generation the call asks for, where it is neither greedy search nor sampling."""
        mode = GenerationConfig.get_generation_mode(self)
        drafted = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)
        return None if mode in drafted else str(mode.value).replace("_", " ")

    def other_drafter(self, written: Mapping[str, Any]) -> str | None:
        """
        Returns the option by which the call asks for another way of drafting, if any.

        Args:
            written (`Mapping[str, Any]`):
                What the call says about drafting: a number of tokens to look up that was written for a head belongs to
                that head, unlike one in the target's own config.
        """
        names = ["use_mtp", "assistant_early_exit"]
        if "draft_retrieval" not in written:
            names.append("prompt_lookup_num_tokens")
        return next((name for name in names if getattr(self, name)), None)
