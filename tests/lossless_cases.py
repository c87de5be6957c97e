"""
The space of calls that have to be lossless, drawn from any `random.Random`: a seeded one (`benchmarks/lossless.py`) or
one that Hypothesis steers and shrinks (`test_fuzz.py`). Every call runs once plainly and once per draft tree.
"""

import copy
import functools
import random
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from architectures import ARCHITECTURES, VOCAB_SIZE, tiny_target
from doubles import ScriptedDrafter, inference_tensors, random_draft
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from eagle_hf import DraftOptions
from eagle_hf.versions import CACHE, cache_of


# Rounding of float32 over a few layers, relative to the largest logit; more than that is an error.
TOLERANCE = 1e-3

target_of = functools.lru_cache(maxsize=None)(tiny_target)
head_of = functools.lru_cache(maxsize=None)(lambda name, version: random_draft(target_of(name), version))


@dataclass(frozen=True)
class Tree:
    """What drafts: the scripted drafter (`eagle_version` is 0), or a random head with these options."""

    eagle_version: int
    seed: int
    num_nodes: int
    max_depth: int
    hit_rate: float
    kind: str
    width: int
    looked_up: int = 0  # nodes, besides those of a random head


@dataclass(frozen=True)
class Call:
    """A call of `generate`, but for what drafts."""

    architecture: str
    lengths: tuple[int, ...]
    seed: int
    form: str
    options: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()


# ---------------------------------------------------------------------- drawing

WARPERS = {
    "temperature": lambda r: r.choice([0.3, 0.7, 1.0, 1.6]),
    "top_k": lambda r: r.choice([0, 2, 5, 20, 95]),
    "top_p": lambda r: r.choice([0.3, 0.8, 0.95]),
    "min_p": lambda r: r.choice([0.02, 0.2]),
    "typical_p": lambda r: r.choice([0.4, 0.9]),
    "epsilon_cutoff": lambda r: r.choice([0.005, 0.05]),
    "eta_cutoff": lambda r: r.choice([0.005, 0.05]),
    "top_h": lambda r: r.choice([0.3, 0.7]),
    "renormalize_logits": lambda r: True,
}
PROCESSORS = {
    "repetition_penalty": lambda r: r.choice([0.8, 1.1, 1.5]),
    "no_repeat_ngram_size": lambda r: r.choice([1, 2, 3]),
    "min_new_tokens": lambda r: r.choice([2, 6]),
    "bad_words_ids": lambda r: [[r.randrange(VOCAB_SIZE)], [r.randrange(VOCAB_SIZE), r.randrange(VOCAB_SIZE)]],
    "exponential_decay_length_penalty": lambda r: (r.choice([2, 6]), r.choice([1.1, 2.0])),
    "sequence_bias": lambda r: {(r.randrange(VOCAB_SIZE),): 3.0, tuple(r.sample(range(VOCAB_SIZE), 2)): -2.0},
    "guidance_scale": lambda r: r.choice([0.5, 1.5, 3.0]),
    "suppress_tokens": lambda r: r.sample(range(VOCAB_SIZE), r.choice([1, 9])),
    "begin_suppress_tokens": lambda r: r.sample(range(VOCAB_SIZE), 9),
    "forced_bos_token_id": lambda r: r.randrange(VOCAB_SIZE),
    "forced_eos_token_id": lambda r: r.randrange(VOCAB_SIZE),
    "encoder_repetition_penalty": lambda r: r.choice([0.8, 1.5]),
    "encoder_no_repeat_ngram_size": lambda r: 2,
    "remove_invalid_values": lambda r: True,
}
# What cannot be said as a plain value; made anew for every call, as some of them keep a state.
EXTRAS = ("custom_processor", "custom_criterion", "prefix_fn", "watermark", "synthid", "streamer")
OUTPUTS = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
FORMS = (
    "ids", "ids", "ids", "ids", "no_mask", "embeds", "chunks", "second_turn", "return_sequences", "static_cache",
)  # fmt: skip


def draw_call(r: random.Random) -> Call:
    """A random call; every part of it is chosen independently."""
    form = r.choice(FORMS)
    batch_size = r.choice([1, 1, 1, 2, 3])
    lengths = [r.randint(1, 16)] * batch_size if form == "no_mask" else [r.randint(1, 16) for _ in range(batch_size)]
    options: dict[str, Any] = {
        "max_new_tokens": r.choice([r.randint(1, 7), r.randint(8, 24)]),
        "do_sample": r.random() < 0.5,
    }
    if options["do_sample"]:
        options |= {name: WARPERS[name](r) for name in r.sample(sorted(WARPERS), r.choice([0, 1, 2]))}
    if r.random() < 0.5:
        options |= {name: PROCESSORS[name](r) for name in r.sample(sorted(PROCESSORS), r.choice([1, 1, 2]))}
    if r.random() < 0.2:
        options |= dict.fromkeys(r.sample(OUTPUTS, r.choice([1, 2])), True)
    if form == "return_sequences":
        options |= {"do_sample": True, "num_return_sequences": r.choice([2, 3])}
    if form == "embeds":  # there is no prompt that these could read
        for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "guidance_scale"):
            options.pop(name, None)
    extras = tuple(r.sample(EXTRAS, r.choice([1, 1, 2]))) if r.random() < 0.3 else ()
    if {"watermark", "synthid"} <= set(extras):
        extras = ("watermark",)
    eos = tuple(r.sample(range(3, VOCAB_SIZE), r.choice([0, 1, 4, 10])))
    if not eos:
        options.pop("exponential_decay_length_penalty", None)
    stop_strings = tuple(r.choices(sorted(stop_tokenizer().get_vocab())[3:], k=2)) if r.random() < 0.1 else ()
    architecture = r.choice(sorted(ARCHITECTURES))
    if architecture.startswith("falcon"):  # with them its sdpa adds a boolean mask to the scores, in plain `generate`
        options.pop("output_attentions", None)
    if form == "static_cache":
        if not can_be_static(architecture):
            form = "ids"
        options.pop("output_attentions", None)  # those of padding differ, as it attends to all columns alike
    return Call(
        architecture=architecture, lengths=tuple(lengths), seed=r.randrange(10**6), form=form,
        options=options, extras=extras, stop_strings=stop_strings, eos=eos,
    )  # fmt: skip


def draw_tree(r: random.Random) -> Tree:
    """A random tree; mostly of the scripted drafter, which is right often enough for long paths to be accepted."""
    return Tree(
        eagle_version=r.choice([0, 0, 0, 0, 0, 0, 1, 3]),
        seed=r.randrange(10**6),
        num_nodes=r.choice([4, 9, 17]),
        max_depth=r.randint(1, 6),
        hit_rate=r.choice([0.5, 0.9, 1.0]),
        kind=r.choice(["dynamic", "auto", "static", "chain"]),
        width=r.choice([1, 2, 4]),
        looked_up=r.choice([0, 0, 4, 16]),
    )


def can_be_static(architecture: str) -> bool:
    """Whether the cache can have a fixed size: without windows, which have none that could be taken back."""
    target = target_of(architecture)
    kinds = set(getattr(target.config, "layer_types", None) or ["full_attention"])
    has_window = kinds != {"full_attention"} or getattr(target.config, "sliding_window", None)
    return target._can_compile_fullgraph and not has_window


# ---------------------------------------------------------------------- running


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.puts: list[Any] = []

    def put(self, value):
        self.puts.append(value.tolist())

    def end(self):
        self.puts.append("end")


class CountingProcessor(LogitsProcessor):
    """Custom, stateful and dependent on the prefix: one call too many or with a wrong prefix changes the text."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        favoured = (input_ids.sum(dim=1) * 7 + self.calls * 13) % scores.shape[1]
        return scores.scatter_add(1, favoured[:, None], torch.full((len(scores), 1), 2.0, dtype=scores.dtype))


class StopAtMultiples(StoppingCriteria):
    """Custom, for every row by itself."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 11 == 0


@functools.cache
def stop_tokenizer() -> PreTrainedTokenizerFast:
    """A token of one or two letters for every id."""
    letters = [chr(97 + i) for i in range(26)]
    pairs = [first + second for first in "abc" for second in letters][: VOCAB_SIZE - 29]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", padding_side="left")


def _prompt(call: Call) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(call.seed)
    ids = torch.zeros(len(call.lengths), max(call.lengths), dtype=torch.long)
    for row, length in enumerate(call.lengths):
        ids[row, -length:] = torch.randint(3, VOCAB_SIZE, (length,), generator=generator)
    return {"input_ids": ids} if call.form == "no_mask" else {"input_ids": ids, "attention_mask": (ids != 0).long()}


@functools.lru_cache(maxsize=64)
def _first_turn(architecture: str, lengths: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Ids and mask of a second turn, and the cache of the first."""
    inputs = _prompt(Call(architecture, lengths, seed, "ids"))
    first = target_of(architecture).generate(
        **inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    question = torch.randint(3, VOCAB_SIZE, (len(lengths), 3), generator=torch.Generator().manual_seed(seed + 1))
    ids = torch.cat([first.sequences, question], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 9), value=1)
    return ids, mask, cache_of(first)


def _inputs(call: Call) -> dict[str, Any]:
    if call.form == "second_turn":
        ids, mask, cache = _first_turn(call.architecture, call.lengths, call.seed)
        cache = copy.deepcopy(cache)
        ids = ids if call.seed % 2 else ids[:, cache.get_seq_length() :]
        return {"input_ids": ids, "attention_mask": mask, CACHE: cache}
    inputs: dict[str, Any] = _prompt(call)
    if call.form == "embeds":
        inputs["inputs_embeds"] = target_of(call.architecture).get_input_embeddings()(inputs.pop("input_ids")).detach()
    if call.form == "static_cache":
        inputs["cache_implementation"] = "static"
    if call.form == "chunks":
        inputs["prefill_chunk_size"] = 4
    return inputs


def _generate(call: Call, draft: Any, **more: Any) -> tuple[Any, torch.Tensor, list[Any]]:
    """The output, where it left the global generator, and what was streamed."""
    streamed = Recorder()
    kwargs: dict[str, Any] = dict(call.options) | more | {"return_dict_in_generate": True}
    makers = {
        "custom_processor": lambda: {"logits_processor": [CountingProcessor()]},
        "custom_criterion": lambda: {"stopping_criteria": [StopAtMultiples()]},
        "prefix_fn": lambda: {
            "prefix_allowed_tokens_fn": lambda row, ids: [t for t in range(3, VOCAB_SIZE) if (t + len(ids) + row) % 3]
        },
        "watermark": lambda: {"watermarking_config": WatermarkingConfig(bias=3.0)},
        "synthid": lambda: {
            "watermarking_config": SynthIDTextWatermarkingConfig(keys=[3, 5, 7], ngram_len=2, context_history_size=8)
        },
        "streamer": lambda: {"streamer": streamed},
    }
    for extra in call.extras:
        kwargs |= makers[extra]()
    if call.stop_strings:
        kwargs |= {"stop_strings": list(call.stop_strings), "tokenizer": stop_tokenizer()}
    torch.manual_seed(call.seed)
    output = target_of(call.architecture).generate(
        **_inputs(call), **kwargs, eos_token_id=list(call.eos) or None, assistant_model=draft
    )
    return output, torch.get_rng_state(), streamed.puts


def _with_tree(call: Call, tree: Tree, truth: list[list[int]], **more: Any) -> tuple[Any, torch.Tensor, list[Any]]:
    if tree.eagle_version:
        head = copy.copy(head_of(call.architecture, tree.eagle_version))
        head.generation_config = DraftOptions(
            draft_tree=tree.kind, num_assistant_tokens=tree.num_nodes, draft_depth=tree.max_depth,
            draft_width=tree.width, draft_retrieval=tree.looked_up,
        ).to_generation_config()  # fmt: skip
        return _generate(call, head, **more)
    drafter = ScriptedDrafter(truth, tree.seed, tree.num_nodes, tree.max_depth, tree.hit_rate, is_strict=False)
    with patch("eagle_hf.generation.proposals.Drafter", lambda *args, **kwargs: drafter):
        return _generate(call, head_of(call.architecture, 3), **more)


@dataclass
class Outcome:
    """
    How a case went: `mismatch` says what differs from plain `generate`, and is empty where nothing does. `is_near_tie`
    means that it starts at two tokens that the target itself tells apart by rounding only. `accepted` tokens came from
    `verifications` of trees, over all rows.
    """

    mismatch: str = ""
    is_near_tie: bool = False
    new_tokens: int = 0
    accepted: int = 0
    verifications: int = 0


def run_call(call: Call, trees: list[Tree]) -> list[Outcome]:
    """Run a call plainly and with every tree. Where plain `generate` fails, the others have to fail in the same way."""
    try:
        plain, plain_state, plain_puts = _generate(call, None)
    except Exception as failure:
        return [Outcome(mismatch=_other_failure(call, tree, failure)) for tree in trees]
    prompt_len = plain.sequences.shape[1] - _new_tokens(plain, call)
    truth = plain.sequences[:, prompt_len:].tolist()
    outcomes = []
    for tree in trees:
        ours, state, puts = _with_tree(call, tree, truth)
        lengths = ours.acceptance_lengths
        outcome = Outcome(
            new_tokens=len(truth[0]), accepted=sum(map(sum, lengths)), verifications=sum(map(len, lengths))
        )
        if not torch.equal(plain.sequences, ours.sequences):
            outcome.mismatch = "sequences"
            outcome.is_near_tie = starts_at_a_near_tie(call, tree, truth, prompt_len)
        elif not torch.equal(plain_state, state):
            outcome.mismatch = "state of the global generator"
        elif plain_puts != puts:
            outcome.mismatch = "what was streamed"
        else:
            outcome.mismatch = _different_outputs(call, plain, ours, prompt_len)
        outcomes.append(outcome)
    return outcomes


def _other_failure(call: Call, tree: Tree, expected: Exception) -> str:
    try:
        _with_tree(call, replace(tree, eagle_version=tree.eagle_version or 3), [])
    except Exception as failure:
        return "" if type(failure) is type(expected) else f"raised {failure!r} instead of {expected!r}"
    return f"did not raise {expected!r}"


def _new_tokens(output: Any, call: Call) -> int:
    if call.form == "embeds":
        return output.sequences.shape[1]
    return output.sequences.shape[1] - _inputs(call)["input_ids"].shape[1]


def _different_outputs(call: Call, plain: Any, ours: Any, prompt_len: int) -> str:
    """Which output differs by more than rounding in rows that have not finished."""
    if cache_of(plain).get_seq_length() != cache_of(ours).get_seq_length():
        return "length of the cache"
    if any(getattr(layer, "record_past", False) for layer in cache_of(ours).layers):
        return "state of the cache"
    made = {name: value for name, value in ours.items() if name != "draft_trees"}
    made |= {f"cache {i}": vars(layer) for i, layer in enumerate(cache_of(ours).layers)}
    if places := inference_tensors(made) + inference_tensors(target_of(call.architecture)):
        return f"made in inference mode: {places}"
    new = plain.sequences[:, prompt_len:]
    stops = call.eos or call.stop_strings or "custom_criterion" in call.extras
    for name in ("scores", "logits", "hidden_states", "attentions"):
        expected, got = getattr(plain, name), getattr(ours, name)
        if expected is None or got is None:
            if expected is not got:
                return name
            continue
        if len(expected) != len(got):
            return f"length of {name}"
        for column, entries in enumerate(zip(expected, got, strict=True)):
            # Entries of rows that have finished mean nothing, in plain `generate` either; finished rows get padding.
            rows = (new[:, : column + 1] != 0).all(dim=1) if stops else torch.ones(len(new), dtype=torch.bool)
            pairs = [entries] if torch.is_tensor(entries[0]) else list(zip(*entries, strict=True))
            for one, other in pairs:
                if one.shape != other.shape:
                    return f"shape of {name}: {tuple(other.shape)} instead of {tuple(one.shape)}"
                if not _close(one[rows], other[rows]) and name != "scores":  # thresholds cut scores off at near ties
                    return f"values of {name} at new token {column}"
    return ""


def _close(expected: torch.Tensor, got: torch.Tensor) -> bool:
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 1.0
    return torch.allclose(got, expected, atol=TOLERANCE * max(scale, 1.0), rtol=TOLERANCE)


def starts_at_a_near_tie(call: Call, tree: Tree, truth: list[list[int]], prompt_len: int) -> bool:
    """Whether the first difference is one between two tokens that rounding decides, and all logits before agree."""
    more = {"output_scores": True, "output_logits": True}
    plain, *_ = _generate(call, None, **more)
    ours, *_ = _with_tree(call, tree, truth, **more)
    length = min(plain.sequences.shape[1], ours.sequences.shape[1])
    different = (plain.sequences[:, :length] != ours.sequences[:, :length]).nonzero()
    if not len(different):
        return False
    row, column = min(different.tolist(), key=lambda place: place[1])
    column -= prompt_len
    if column < 0 or not _close(plain.logits[column][row], ours.logits[column][row]):
        return False
    expected, got = plain.scores[column][row], ours.scores[column][row]
    if not torch.equal(expected.isneginf(), got.isneginf()):
        return True  # a threshold (top-p and its like) between two tokens
    if call.options["do_sample"]:  # `multinomial` takes the largest ratio to one exponential per token
        torch.manual_seed(call.seed)
        for _ in range(column + 1):
            exponentials = torch.empty(len(plain.sequences), VOCAB_SIZE).exponential_()
        expected = (expected.softmax(-1) / exponentials[row]).log()
    best = expected.topk(2).values
    return bool(best[0] - best[1] <= TOLERANCE * best[0].abs().clamp(min=1.0))
