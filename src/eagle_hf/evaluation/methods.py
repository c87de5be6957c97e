"""The methods that are compared: plain `generate`, the head with one or several trees, and what `transformers` has."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from ..draft_options import DraftOptions
from ..head.modeling_eagle import EagleDraftModel
from .environment import describe_model
from .settings import BASELINES
from .settings import PLAIN as PLAIN


EAGLE = "eagle"
COMPILED_PLAIN, COMPILED_EAGLE = "plain compiled", "eagle compiled"


@dataclass(frozen=True)
class Method:
    """
    A way to generate.

    Args:
        name (`str`): What results call it.
        options (`dict[str, Any]`, *optional*): Further options of `generate`.
        draft_config ([`~transformers.GenerationConfig`], *optional*): With a head: its `generation_config`.
        tree (`tuple[int, int, int]`, *optional*): Nodes, depth and width, where they are not those of the head.
        facts (`dict[str, Any]`, *optional*): What to record of the method.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    draft_config: GenerationConfig | None = None
    tree: tuple[int, int, int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_eagle(self) -> bool:
        """Whether it drafts with the head."""
        return self.draft_config is not None


def make_methods(
    draft: EagleDraftModel,
    baselines: Sequence[str] = (),
    assistant_model: PreTrainedModel | None = None,
    prompt_lookup_num_tokens: int = 10,
    trees: Sequence[tuple[int, int, int]] = (),
    compiles: bool = False,
) -> list[Method]:
    """
    Returns plain `generate`, the head as it is, and whatever else is asked for.

    Args:
        draft ([`EagleDraftModel`]): The head, on its target's device; its `generation_config` says how it drafts.
        baselines (`Sequence[str]`, *optional*): `"prompt_lookup"`, `"assisted"`; `"plain"` is always measured.
        assistant_model ([`~transformers.PreTrainedModel`], *optional*): The small model of `"assisted"`.
        prompt_lookup_num_tokens (`int`, *optional*, defaults to 10): Tokens that prompt lookup proposes.
        trees (`Sequence[tuple[int, int, int]]`, *optional*): Further dynamic trees: nodes, depth and width.
        compiles (`bool`, *optional*, defaults to `False`):
            Whether to measure plain `generate` and the head with a static cache and compiled steps as well.

    Raises:
        `ValueError`: if a baseline is unknown, or lacks its model.
    """
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"Unknown baselines {unknown}. Known: {', '.join(BASELINES)}.")
    if ("assisted" in baselines) != (assistant_model is not None):
        raise ValueError("The baseline `assisted` and the small model that assists (`assistant_model`) go together.")
    own = DraftOptions.from_generation_config(draft.generation_config, draft.device.type)
    methods = [Method(PLAIN), _eagle(EAGLE, own, None)]
    for tree in dict.fromkeys(trees):
        nodes, depth, width = tree
        options = DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width)
        methods.append(_eagle(f"{EAGLE} {nodes}/{depth}/{width}", options, tree))
    if compiles:
        config = compile_config(draft.device.type)
        facts = {
            "cache_implementation": "static",
            "compile_mode": config.mode,
            "compile_options": config.options,
        }
        compiled = {"cache_implementation": "static", "compile_config": config}
        eagle = _eagle(COMPILED_EAGLE, own, None)
        methods.append(Method(COMPILED_PLAIN, compiled, facts=facts))
        methods.append(replace(eagle, options=compiled, facts=eagle.facts | facts))
    if "prompt_lookup" in baselines:
        options_ = {"prompt_lookup_num_tokens": prompt_lookup_num_tokens}
        methods.append(Method("prompt_lookup", options_, facts=options_))
    if assistant_model is not None:
        methods.append(Method("assisted", {"assistant_model": assistant_model}, facts=describe_model(assistant_model)))
    return methods


def compile_config(device_type: str) -> CompileConfig:
    """
    Returns how to compile on a kind of device. On a CPU, plain `generate` compiles on this private request only, and
    the calls between the kernels are compiled too (`cpp_wrapper`): in Python they take as long as the kernels of small
    models.
    """
    config = (
        CompileConfig(mode=None, options={"cpp_wrapper": True})
        if device_type == "cpu"
        else CompileConfig(mode="default")
    )
    config._compile_all_devices = True
    return config


def _eagle(name: str, options: DraftOptions, tree: tuple[int, int, int] | None) -> Method:
    config = replace(options, output_draft_trees=False).to_generation_config()
    facts = {field: getattr(options, field) for field in options.__dataclass_fields__ if field != "output_draft_trees"}
    return Method(name, draft_config=config, tree=tree, facts=facts)


def parse_tree(text: str) -> tuple[int, int, int]:
    """
    Returns the nodes, depth and width of a tree, written as `15/5/4`.

    Raises:
        `ValueError`: if it is written otherwise.
    """
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"A tree is written NODES/DEPTH/WIDTH, such as 15/5/4; got {text!r}.")
    nodes, depth, width = map(int, parts)
    return nodes, depth, width
