"""Verifies in fixed shapes, by a forward that is compiled once: what a static cache allows."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.fixed import capacity
from ..target.target import Target, Verified
from ..tree import DraftTree
from .cpu import FewRowProducts
from .fingerprint import changes_itself, compiled, depends_on, state_of


def compiled_call(
    model: PreTrainedModel, model_kwargs: dict[str, Any], generation_config: GenerationConfig
) -> Callable[..., Any] | None:
    """
    Returns the compiled forward of the target, where plain `generate` would compile its steps; and also on a CPU if a
    `compile_config` was passed, since this asks for it.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        model_kwargs (`dict`): As prepared by `generate`; holds the cache.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
    """
    config: CompileConfig | None = generation_config.compile_config
    if config is not None and model.device.type == "cpu":
        generation_config = copy.copy(generation_config)
        generation_config.compile_config = copy.copy(config)
        generation_config.compile_config._compile_all_devices = True
    if not model._valid_auto_compile_criteria(model_kwargs, generation_config):
        return None
    plain_call = model.get_compiled_call(config)
    if plain_call == model.__call__ or changes_itself(model):
        return plain_call
    return CompiledForward(model, config or CompileConfig())


def loads_kernels(model: PreTrainedModel) -> bool:
    """Returns whether first forwards of a target take longer: a GPU loads its kernels when they are first called."""
    return model.device.type != "cpu"


class CompiledTarget(Target):
    """
    A target that verifies trees in a cache of fixed size by a compiled forward.

    Args:
        arguments: As for [`Target`].
        call (`Callable`): The compiled forward, from [`compiled_call`].
        max_nodes (`int`): Nodes of the largest tree, the root included.
    """

    def __init__(self, *arguments: Any, call: Callable[..., Any], max_nodes: int):
        super().__init__(*arguments)
        self._call, self._max_nodes = call, max_nodes

    @property
    def has_fixed_shapes(self) -> bool:
        """
        Whether all trees are made equally large: every size would be a CUDA graph of its own, while on a CPU one graph
        serves many sizes. CUDA graphs also write the outputs of every replay to the same place.
        """
        return self.model.device.type != "cpu"

    def compiling(self) -> tuple[CompileConfig | None, int | None]:
        """Overrides [`Target.compiling`]."""
        return self.generation_config.compile_config or CompileConfig(), capacity(self.cache)

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Overrides [`Target.prefill`]: looks at the modules after the first forward."""
        logits = super().prefill(input_ids)
        if isinstance(self._call, CompiledForward):
            self._call.look_over()
        if self.has_fixed_shapes:
            self._prompt_states = [states.clone() for states in self._prompt_states]
        return logits

    def verify(self, tree: DraftTree) -> Verified:
        """Overrides [`Target.verify`]: copies what the next replay of a CUDA graph would write over."""
        verified = super().verify(tree)
        if not self.has_fixed_shapes:
            return verified
        states = [states.clone() for states in verified.states]
        return replace(verified, logits=verified.logits.clone(), states=states)

    def _padded(self, tree: DraftTree) -> DraftTree:
        if self.has_fixed_shapes:
            num_rows = self._max_nodes if tree.num_nodes > 1 else 1
        else:  # a single row would be a graph of its own, and a slower one (docs/performance.md)
            num_rows = max(tree.num_nodes, 2) if isinstance(self._call, CompiledForward) else tree.num_nodes
        room = cast(int, capacity(self.cache)) - max(self.lengths)
        return tree.padded(min(num_rows, room))

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        return super()._forward(tree, call=self._call, **kwargs)


class CompiledForward:
    """
    The target's forward, compiled without guards of its modules. On a CPU the number of rows, two or more, is left open
    from the first graph on.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        config ([`~transformers.CompileConfig`]): How to compile.
    """

    def __init__(self, model: PreTrainedModel, config: CompileConfig):
        self._model, self._forward, self._state = model, compiled(model, _forward, config), ""
        self._leaves_rows_open = model.device.type == "cpu" and config.dynamic is not False

    def look_over(self) -> None:
        """
        Sees what the target's modules are like; once per `generate` call, after the prefill: the first one that returns
        hidden states installs hooks for them.
        """
        self._state = state_of(self._model)

    def __call__(self, **inputs: Any) -> Any:
        """Runs the target's `forward`."""
        if self._leaves_rows_open:
            masks = inputs["attention_mask"]
            for mask in masks.values() if isinstance(masks, dict) else [masks]:
                torch._dynamo.maybe_mark_dynamic(mask, 2)  # (batch_size, 1, num_rows, num_columns)
            for name in ("input_ids", "position_ids"):  # (..., num_rows)
                torch._dynamo.maybe_mark_dynamic(inputs[name], inputs[name].dim() - 1)
        return self._forward(self._state, self._model, **inputs)


def _forward(state: str, model: PreTrainedModel, **inputs: Any) -> Any:
    depends_on(state)
    if inputs["input_ids"].device.type != "cpu":
        return model(**inputs)
    with FewRowProducts():
        return model(**inputs)
