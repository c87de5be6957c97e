"""
The dimensions of the calls that have to be lossless, the targets among them, and what excludes what. A call is drawn
jointly from all of them, so that any two values meet.
"""

import functools
import random
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import accelerate
import torch
from architectures import ARCHITECTURES, tiny_target
from every_decoder import model_types, tiny_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from eagle_hf.versions import FP8_LAYERS


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Name -> layers, positions, feed-forward, embedding. What is in no table of `architectures.py` is a decoder of
# `every_decoder.py` with these fields set.
TARGETS: dict[str, tuple[str, str, str, str]] = {
    "llama": ("full", "rotary", "dense", "untied"),
    "llama-tied": ("full", "rotary", "dense", "tied"),
    "llama-multi-query": ("full", "rotary", "dense", "untied"),
    "qwen2": ("full", "rotary", "dense", "untied"),
    "qwen3": ("full", "rotary", "dense", "untied"),
    "gemma": ("full", "rotary", "dense", "untied"),
    "phi": ("full", "rotary", "dense", "untied"),
    "gpt-neox": ("full", "rotary", "dense", "untied"),
    "falcon-multi-query": ("full", "rotary", "dense", "untied"),
    "stablelm": ("full", "rotary", "dense", "untied"),
    "olmo2": ("full", "rotary", "dense", "untied"),
    "cohere": ("full", "rotary", "dense", "untied"),
    "glm4": ("full", "rotary", "dense", "untied"),
    "smollm3": ("full", "rotary", "dense", "untied"),
    "mixtral-moe": ("full", "rotary", "experts", "untied"),
    "qwen3-moe": ("full", "rotary", "experts", "untied"),
    "granite-moe": ("full", "rotary", "experts", "untied"),
    "gpt2-learned-positions": ("full", "learned", "dense", "untied"),
    "gpt-bigcode-multi-query": ("full", "learned", "dense", "untied"),
    "opt-learned-positions": ("full", "learned", "dense", "untied"),
    "gpt2-tied": ("full", "learned", "dense", "tied"),
    "bloom": ("full", "alibi", "dense", "untied"),
    "bloom-tied": ("full", "alibi", "dense", "tied"),
    "mpt": ("full", "alibi", "dense", "untied"),
    "smollm3-no-positions": ("full", "none", "dense", "untied"),
    "mistral-sliding": ("windows", "rotary", "dense", "untied"),
    "phi3-sliding": ("windows", "rotary", "dense", "untied"),
    "starcoder2-sliding": ("windows", "rotary", "dense", "untied"),
    "qwen2-mixed": ("alternating", "rotary", "dense", "untied"),
    "gemma2-softcap": ("alternating", "rotary", "dense", "untied"),
    "gemma3-mixed": ("alternating", "rotary", "dense", "untied"),
    "olmo3-mixed": ("alternating", "rotary", "dense", "untied"),
    "cohere2-mixed": ("alternating", "rotary", "dense", "untied"),
    "gemma3-tied": ("alternating", "rotary", "dense", "tied"),
    "llama4-chunked": ("chunked", "rotary", "experts", "untied"),
    "gpt-oss-sinks": ("sinks", "rotary", "experts", "untied"),
    "deepseek-v2-mla": ("latent", "rotary", "experts", "untied"),
    "deepseek-v3-mla": ("latent", "rotary", "experts", "untied"),
    "gemma4-shared": ("shared", "rotary", "dense", "untied"),
    "gemma4-shared-tied": ("shared", "rotary", "dense", "tied"),
    "gemma3n-shared": ("shared", "rotary", "dense", "untied"),
    "lfm2": ("convolution", "rotary", "dense", "untied"),
    "lfm2_moe": ("convolution", "rotary", "experts", "untied"),
    "lfm2-tied": ("convolution", "rotary", "dense", "tied"),
    "qwen3_next": ("recurrent", "rotary", "experts", "untied"),
    "bamba": ("recurrent", "rotary", "dense", "untied"),
    "olmo_hybrid": ("recurrent", "rotary", "dense", "untied"),
    "granitemoehybrid": ("recurrent", "rotary", "experts", "untied"),
    "jamba": ("recurrent", "none", "experts", "untied"),
    "mamba2": ("state only", "none", "dense", "untied"),
}  # fmt: skip
_MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-tied": ("gpt2", {"tie_word_embeddings": True}),
    "bloom-tied": ("bloom", {"tie_word_embeddings": True}),
    "smollm3-no-positions": ("smollm3", {"no_rope_layers": [0, 0, 0, 0]}),
    "gemma3-tied": ("gemma3_text", {"tie_word_embeddings": True}),
    "gemma4-shared": ("gemma4_text", {"num_kv_shared_layers": 2}),
    "gemma4-shared-tied": ("gemma4_text", {"num_kv_shared_layers": 2, "tie_word_embeddings": True}),
    "gemma3n-shared": ("gemma3n_text", {"num_kv_shared_layers": 2}),
    "lfm2-tied": ("lfm2", {"tie_word_embeddings": True}),
}


def _model_type(name: str) -> str:
    return ARCHITECTURES[name][0] if name in ARCHITECTURES else _MADE.get(name, (name,))[0]


# Those that the installed transformers has.
TARGETS = {name: kind for name, kind in TARGETS.items() if _model_type(name) in model_types()}
HAS_SEVERAL_STREAMS = {"gemma3n-shared"}  # heads can read their last hidden state only
TRAITS = ("layers", "positions", "feed-forward", "embedding")

# Dimension -> value -> how often. Those of a target follow from its name.
CALLS: dict[str, dict[str, float]] = {
    "dtype": {"float32": 6, "bfloat16": 2, "float16": 2},
    "weights": {"in place": 9, "offloaded": 1},
    "cache": {
        "default": 8, "dynamic, passed": 2, "static": 4, "static, passed": 3, "kept": 3,
        "kept, drafted": 1.5,
        **({"fp8": 3} if FP8_LAYERS else {}), "none": 0.5,
    },
    "prompt": {"ids": 6, "without mask": 2, "embeddings": 2, "in chunks": 2},
    "rows": {"one": 4, "equal": 1.5, "padded": 4},
    "choice": {"greedy": 5, "sampled": 4, "several sequences": 1.5},
    "length": {"short": 1, "long": 1},
    "processors": {"none": 4, "built in": 4, "stateful": 1, "watermark": 1},
    "end": {"length": 4, "tokens": 4, "strings": 1, "criterion": 1},
    "streamer": {"no": 5, "yes": 1},
    "records": {"none": 6, "scores": 1, "states": 1, "attentions": 1},
    "head": {"passed": 5, "attached": 1.5},
    "head's dtype": {"target's": 6, "another": 1},
    "head reads": {"early layers": 3, "late layers": 1},
    "options": {"of the head": 3, "keywords": 1, "passed config": 1},
}  # fmt: skip
TREES: dict[str, dict[str, float]] = {
    "drafts": {"scripted": 6, "eagle-1": 1.5, "eagle-3": 1.5, "parallel": 1},
    "tree": {"dynamic": 1, "auto": 1, "static": 1, "chain": 1},
    "looked up": {"nothing": 1, "tokens": 1},
}
DIMENSIONS = (*TRAITS, *CALLS, *TREES)
Kind = dict[str, str]  # a value for every dimension, or for those of a call
Pair = tuple[tuple[str, str], tuple[str, str]]  # dimension and value, twice, in the order of DIMENSIONS

# Pairs that no call can have, whoever generates.
_EXCLUDED = {
    frozenset(pair)
    for pair in (
        (("prompt", "without mask"), ("rows", "padded")),
        *(
            (("cache", cache), ("prompt", value))
            for cache in ("kept", "kept, drafted")
            for value in ("embeddings", "in chunks", "without mask")
        ),
        *((("cache", cache), ("choice", "several sequences")) for cache in ("kept", "kept, drafted")),
        (("cache", "none"), ("prompt", "in chunks")),
    )
}


@functools.cache
def make_target(name: str, dtype: str = "float32", is_offloaded: bool = False) -> PreTrainedModel:
    """Returns a random target of the table, in evaluation mode; the global generator is left as it was."""
    if name in ARCHITECTURES:
        target = tiny_target(name, dtype=DTYPES[dtype])
    else:
        model_type, fields = _MADE.get(name, (name, {}))
        config = tiny_config(model_type)
        config = type(config)(**(config.to_dict() | fields))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            target = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
            with torch.no_grad():
                target(torch.arange(3, 12)[None])  # BigBird draws numbers in its first forward
        target.generation_config.pad_token_id = 0
    if dtype == "float32":  # whatever dtype other tests are run with
        target.float()
    if is_offloaded:
        accelerate.cpu_offload(target, execution_device=torch.device("cpu"))
    return target


def can_be(kind: Mapping[str, str]) -> bool:
    """Whether no two of these values exclude each other."""
    return not any(frozenset(pair) in _EXCLUDED for pair in combinations(kind.items(), 2))


def _targets_with(wanted: Mapping[str, str]) -> list[str]:
    traits = [wanted.get(trait) for trait in TRAITS]
    names = [
        name
        for name, values in TARGETS.items()
        if all(want in (None, value) for want, value in zip(traits, values, strict=True))
    ]
    reads_layers = wanted.get("drafts") in ("eagle-3", "parallel")
    return [name for name in names if not (reads_layers and name in HAS_SEVERAL_STREAMS)]


def draw_target(r: random.Random, wanted: Mapping[str, str]) -> str:
    """Returns a target with these traits: layers first, then positions and embedding, so that rare ones are there."""
    names = _targets_with(wanted)
    for trait in (0, 1, 3):
        values = sorted({TARGETS[name][trait] for name in names})
        value = r.choices(values, [3 if value in ("full", "rotary") else 1 for value in values])[0]
        names = [name for name in names if TARGETS[name][trait] == value]
    return r.choice(names)


def draw_kind(r: random.Random, dimensions: Mapping[str, Mapping[str, float]], wanted: Mapping[str, str]) -> Kind:
    """
    Returns a value for every dimension of `dimensions`, independently of each other but for what excludes what.

    Args:
        r (`random.Random`): Draws.
        dimensions (`Mapping`): `CALLS` or `TREES`.
        wanted (`Mapping[str, str]`): Values that are given, also of other dimensions.
    """
    while True:
        kind = {
            name: wanted[name] if name in wanted else r.choices(list(values), list(values.values()))[0]
            for name, values in dimensions.items()
        }
        if can_be({**wanted, **kind}):
            return kind


@functools.cache
def pairs() -> list[Pair]:
    """Returns all pairs of values of two dimensions that a case can have, in a fixed order."""
    return sorted(set(_pairs()))


def _pairs() -> Iterator[Pair]:
    for traits in set(TARGETS.values()):
        kind = list(zip(TRAITS, traits, strict=True))
        yield from combinations(kind, 2)
        yield from (
            (entry, (name, value)) for entry in kind for name, values in (CALLS | TREES).items() for value in values
        )
    for (name, values), (other, others) in combinations((CALLS | TREES).items(), 2):
        yield from (
            ((name, value), (other, another)) for value in values for another in others
            if can_be({name: value, other: another})
        )  # fmt: skip


def pairs_of(kind: Mapping[str, str]) -> Iterator[Pair]:
    """Returns the pairs of a case, whose values are all given."""
    return combinations([(name, kind[name]) for name in DIMENSIONS], 2)


def wanted_pair(seed: int, index: int) -> dict[str, str]:
    """Returns the pair that call `index` must have: all of them take turns, in an order that `seed` shuffles."""
    order = _order(seed)
    return dict(order[index % len(order)])


@functools.lru_cache(maxsize=4)
def _order(seed: int) -> list[Pair]:
    order = list(pairs())
    random.Random(f"pairs-{seed}").shuffle(order)
    return order
