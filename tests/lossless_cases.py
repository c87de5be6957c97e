"""
The space of calls that have to be lossless, drawn from any `random.Random`: a seeded one (`benchmarks/lossless.py`) or
one that Hypothesis steers and shrinks (`test_fuzz.py`). Every call runs once plainly and once per draft tree.
"""

import contextlib
import copy
import functools
import random
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from architectures import VOCAB_SIZE
from doubles import ScriptedChainDrafter, ScriptedDrafter, inference_tensors, random_draft
from lossless_space import (
    CALLS,
    DTYPES,
    HAS_SEVERAL_STREAMS,
    TARGETS,
    TRAITS,
    TREES,
    draw_kind,
    draw_target,
    make_target,
    wanted_pair,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

import eagle_hf
from eagle_hf import DraftOptions, EagleDraftModel, attach, detach
from eagle_hf.drafting.policy import FixedSize
from eagle_hf.versions import CACHE, cache_of


# Rounding of float32 over a few layers, relative to the largest logit; more than that is an error.
TOLERANCE = 1e-3
# In half precision, the gap of the two best tokens in units of the dtype's resolution at the largest logit.
LARGEST_GAP = 4
TREES_PER_CALL = 4
PACKAGE = Path(eagle_hf.__file__).parent

_VERSIONS = {"scripted": 3, "eagle-1": 1, "eagle-3": 3, "parallel": 3}


@dataclass(frozen=True)
class Tree:
    """What drafts: the scripted drafter, or a random head of this kind, with these options."""

    drafts: str
    seed: int
    num_nodes: int
    max_depth: int
    hit_rate: float
    kind: str
    width: int
    looked_up: int = 0  # nodes, besides those of a random head

    def traits(self) -> dict[str, str]:
        """Its values of the dimensions `TREES`."""
        return {"drafts": self.drafts, "tree": self.kind, "looked up": "tokens" if self.looked_up else "nothing"}


@dataclass(frozen=True)
class Call:
    """A call of `generate`, but for what drafts. `kind` has its values of the dimensions `CALLS`."""

    architecture: str
    lengths: tuple[int, ...]
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    kind: dict[str, str] = field(default_factory=dict)

    def of(self, dimension: str) -> str:
        """The value of a dimension; where none is given, that of the simplest call."""
        return self.kind.get(dimension) or next(iter(CALLS[dimension]))

    def traits(self) -> dict[str, str]:
        """The values of all dimensions but those of a tree."""
        return dict(zip(TRAITS, TARGETS[self.architecture], strict=True)) | {name: self.of(name) for name in CALLS}


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
OUTPUTS = {"scores": ("output_scores", "output_logits"), "states": ("output_hidden_states",),
           "attentions": ("output_attentions",)}  # fmt: skip
_HAS_WINDOWS = {"windows", "alternating", "chunked", "sinks", "shared"}


def draw_call(r: random.Random, wanted: Mapping[str, str] | None = None) -> Call:
    """Returns a random call: every part of it is chosen independently, but for those that are `wanted`."""
    kind = draw_kind(r, CALLS, wanted or {})
    architecture = draw_target(r, wanted or {})
    fits_windows = kind["cache"].startswith("static") and TARGETS[architecture][0] in _HAS_WINDOWS and r.random() < 0.7
    longest = 3 if fits_windows else 16
    lengths = [r.randint(1, longest)] * (1 if kind["rows"] == "one" else r.choice([2, 3]))
    if kind["rows"] == "padded":
        lengths = [max(lengths[0], 2)] + [r.randint(1, max(lengths[0], 2) - 1) for _ in lengths[1:]]
        r.shuffle(lengths)
    max_new_tokens = r.randint(1, 7) if kind["length"] == "short" else r.randint(8, 24)
    options: dict[str, Any] = {"max_new_tokens": min(max_new_tokens, 4) if fits_windows else max_new_tokens}
    options["do_sample"] = kind["choice"] != "greedy"
    if options["do_sample"]:
        options |= {name: WARPERS[name](r) for name in r.sample(sorted(WARPERS), r.choice([0, 1, 2]))}
    if kind["choice"] == "several sequences":
        options["num_return_sequences"] = r.choice([2, 3])
    if kind["processors"] == "built in":
        options |= {name: PROCESSORS[name](r) for name in r.sample(sorted(PROCESSORS), r.choice([1, 1, 2]))}
        if kind["prompt"] == "embeddings":  # there is no prompt that these could read
            for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "guidance_scale"):
                options.pop(name, None)
        if kind["end"] != "tokens":
            options.pop("exponential_decay_length_penalty", None)
    extras = []  # what cannot be said as a plain value; made anew for every call, as some of them keep a state
    if kind["processors"] == "stateful":
        extras += [r.choice(["custom_processor", "prefix_fn"])]
    if kind["processors"] == "watermark":
        extras += [r.choice(["watermark", "synthid"])]
    if kind["end"] == "criterion":
        extras += ["custom_criterion"]
    if kind["streamer"] == "yes":
        extras += ["streamer"]
    outputs = OUTPUTS.get(kind["records"], ())
    options |= dict.fromkeys(r.sample(outputs, r.randint(1, len(outputs))) if outputs else (), True)
    eos = tuple(r.sample(range(3, VOCAB_SIZE), r.choice([1, 4, 10]))) if kind["end"] == "tokens" else ()
    strings = tuple(r.choices(sorted(stop_tokenizer().get_vocab())[3:], k=2)) if kind["end"] == "strings" else ()
    return Call(
        architecture=architecture, lengths=tuple(lengths), seed=r.randrange(10**6), options=options,
        extras=tuple(extras), stop_strings=strings, eos=eos, kind=kind,
    )  # fmt: skip


def draw_tree(r: random.Random, call: Call, wanted: Mapping[str, str] | None = None) -> Tree:
    """
    Returns a random tree for a call; mostly of the scripted drafter, which is right often enough for long paths to be
    accepted.
    """
    kind = draw_kind(r, TREES, wanted or {})
    if call.architecture in HAS_SEVERAL_STREAMS and kind["drafts"] != "scripted":
        kind["drafts"] = "eagle-1"
    return Tree(
        drafts=kind["drafts"],
        seed=r.randrange(10**6),
        num_nodes=r.choice([4, 9, 17]),
        max_depth=r.randint(1, 6),
        hit_rate=r.choice([0.5, 0.9, 1.0]),
        kind=kind["tree"],
        width=r.choice([1, 2, 4]),
        looked_up=r.choice([4, 16]) if kind["looked up"] == "tokens" else 0,
    )


def draw_case(seed: int, index: int) -> tuple[Call, list[Tree]]:
    """
    Returns a call of a sweep with its trees, whose number decides what it is.

    Args:
        seed (`int`): Seed of the sweep.
        index (`int`): Number of the call: pairs of values that a call must have take turns.
    """
    r, wanted = random.Random(f"{seed}-{index}"), wanted_pair(seed, index)
    call = draw_call(r, wanted)
    return call, [draw_tree(r, call, wanted) for _ in range(TREES_PER_CALL)]


# What may be refused: words of the reason, and for which calls.
REFUSALS: list[tuple[str, Callable[[Call], bool]]] = [
    ("a forward over several tokens does not go on from", lambda call: call.architecture == "jamba"),
    ("use_cache=False", lambda call: call.of("cache") == "none"),
    (  # `accelerate` cannot offload it: plain `generate` fails as well, in its second step
        "Cannot copy out of meta tensor",
        lambda call: call.architecture == "llama4-chunked" and call.of("weights") == "offloaded",
    ),
    (
        "static cache",
        lambda call: call.of("cache").startswith("static") and TARGETS[call.architecture][0] in _HAS_WINDOWS,
    ),
]


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


def _target(call: Call) -> PreTrainedModel:
    return make_target(call.architecture, call.of("dtype"), call.of("weights") == "offloaded")


@functools.cache
def _head(name: str, dtype: str, drafts: str, reads: str, has_other_dtype: bool) -> EagleDraftModel:
    target = make_target(name, dtype)
    version = 1 if name in HAS_SEVERAL_STREAMS else _VERSIONS[drafts]
    fields: dict[str, Any] = {"parallel_drafting": True, "mask_token_id": 4} if drafts == "parallel" else {}
    if version == 3 and reads == "late layers":
        num_layers = target.config.get_text_config(decoder=True).num_hidden_layers
        fields["feature_layer_ids"] = [num_layers - 2, num_layers - 1, num_layers]
    head = random_draft(target, version, **fields)
    if has_other_dtype:
        head.to(torch.bfloat16 if dtype == "float32" else torch.float32)
    return head


def _prompt(call: Call) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(call.seed)
    ids = torch.zeros(len(call.lengths), max(call.lengths), dtype=torch.long)
    for row, length in enumerate(call.lengths):
        ids[row, -length:] = torch.randint(3, VOCAB_SIZE, (length,), generator=generator)
    has_no_mask = call.of("prompt") == "without mask"
    return {"input_ids": ids} if has_no_mask else {"input_ids": ids, "attention_mask": (ids != 0).long()}


@functools.lru_cache(maxsize=8)
def _first_turn(
    architecture: str, dtype: str, weights: str, lengths: tuple[int, ...], seed: int
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Ids and mask of a second turn, and the cache of the first."""
    first = Call(architecture, lengths, seed, kind={"dtype": dtype, "weights": weights})
    output = _first_output(first, None)
    question = torch.randint(3, VOCAB_SIZE, (len(lengths), 3), generator=torch.Generator().manual_seed(seed + 1))
    ids = torch.cat([output.sequences, question], dim=1)
    mask = torch.nn.functional.pad(_prompt(first)["attention_mask"], (0, 9), value=1)
    return ids, mask, cache_of(output)


def _first_output(call: Call, head: EagleDraftModel | None) -> Any:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    return _target(call).generate(**_prompt(call), **options, assistant_model=head)


def _second_turn(call: Call, head: EagleDraftModel | None) -> dict[str, Any]:
    """Inputs of a call that goes on with the cache of an earlier one, which the same head may have drafted."""
    ids, mask, cache = _first_turn(call.architecture, call.of("dtype"), call.of("weights"), call.lengths, call.seed)
    cache = copy.deepcopy(cache)
    if head is not None and call.of("cache") == "kept, drafted":
        drafted = None
        with contextlib.suppress(ValueError):  # a refusal, which this call meets as well
            drafted = _first_output(call, head)
        if drafted is not None and torch.equal(drafted.sequences, ids[:, :-3]):  # in half precision it may be another
            cache = cache_of(drafted)
    ids = ids if call.seed % 2 else ids[:, -4:]  # the newest token of the first turn is in no cache yet
    return {"input_ids": ids, "attention_mask": mask, CACHE: cache}


def _inputs(call: Call, head: EagleDraftModel | None = None) -> dict[str, Any]:
    if call.of("cache").startswith("kept"):
        return _second_turn(call, head)
    target, inputs = _target(call), dict(_prompt(call))
    config = target.config.get_text_config(decoder=True)
    if call.of("prompt") == "embeddings":
        inputs["inputs_embeds"] = target.get_input_embeddings()(inputs.pop("input_ids")).detach()
    if call.of("prompt") == "in chunks":
        inputs["prefill_chunk_size"] = 4
    num_columns = max(call.lengths) + call.options["max_new_tokens"] + call.seed % 24
    makers = {
        "default": dict,
        "dynamic, passed": lambda: {CACHE: DynamicCache(config=config)},
        "static": lambda: {"cache_implementation": "static"},
        "static, passed": lambda: {CACHE: StaticCache(config=config, max_cache_len=num_columns)},
        "fp8": lambda: {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
        "none": lambda: {"use_cache": False},
    }
    return inputs | makers[call.of("cache")]()


def _generate(
    call: Call,
    draft: Any,
    draft_options: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, torch.Tensor, list[Any]]:
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
    if call.of("options") == "passed config":
        kwargs["generation_config"] = GenerationConfig(**(draft_options or {}), pad_token_id=0)
    elif call.of("options") == "keywords":
        kwargs |= draft_options or {}
    kwargs |= (inputs or _inputs(call)) | {"eos_token_id": list(call.eos) or None}
    target = _target(call)
    torch.manual_seed(call.seed)
    if draft is None or call.of("head") == "passed":
        output = target.generate(**kwargs, assistant_model=draft)
    else:
        attach(target, draft)
        try:
            output = target.generate(**kwargs)
        finally:
            detach(target)
    return output, torch.get_rng_state(), streamed.puts


def _with_tree(call: Call, tree: Tree, truth: list[list[int]], **more: Any) -> tuple[Any, torch.Tensor, list[Any]]:
    options = {
        "draft_tree": tree.kind, "num_assistant_tokens": tree.num_nodes, "draft_depth": tree.max_depth,
        "draft_width": tree.width, "draft_retrieval": tree.looked_up,
    }  # fmt: skip
    has_other_dtype = call.of("head's dtype") == "another"
    head = _head(call.architecture, call.of("dtype"), tree.drafts, call.of("head reads"), has_other_dtype)
    head = copy.copy(head)
    if call.of("options") == "of the head":
        head.generation_config = DraftOptions(**options).to_generation_config()
    if tree.drafts != "scripted":
        return _generate(call, head, options, _inputs(call, head), **more)

    def make_drafter(draft: Any, chosen: DraftOptions, *args: Any) -> ScriptedDrafter:
        is_chain = chosen.draft_tree == "chain" or chosen.draft_width == 1  # as all are for targets that want them
        scripted = ScriptedChainDrafter if is_chain else ScriptedDrafter
        drafter = scripted(truth, tree.seed, tree.num_nodes, tree.max_depth, tree.hit_rate, is_strict=False)
        return drafter

    inputs = _inputs(call, head)
    # It drafts whatever the plan of a step is, so that there is nothing to learn from times.
    with (
        patch("eagle_hf.generation.decoding.open_drafter", make_drafter),
        patch("eagle_hf.generation.decoding.open_policy", lambda *args: FixedSize()),
    ):
        return _generate(call, head, options, inputs, **more)


@dataclass
class Outcome:
    """
    How a case went. One of the first five is said, or none where nothing differs from plain `generate`.

    Args:
        mismatch: What differs, and must not.
        near_tie: What differs from two tokens on that the target itself tells apart by rounding only.
        sampled_apart: What differs in sampled text in half precision, where a draw may flip at any rounding.
        refusal: The reason with which the call was refused before anything ran.
        plain_failure: How plain `generate` fails, and the drafted call as well.
        new_tokens, accepted, verifications: Columns of new text; tokens that came from verifying trees, and how many
            of these there were, both over all rows.
    """

    mismatch: str = ""
    near_tie: str = ""
    sampled_apart: str = ""
    refusal: str = ""
    plain_failure: str = ""
    new_tokens: int = 0
    accepted: int = 0
    verifications: int = 0

    @property
    def is_compared(self) -> bool:
        """Whether there were two texts."""
        return not self.refusal and not self.plain_failure


def run_call(call: Call, trees: list[Tree]) -> list[Outcome]:
    """Run a call plainly and with every tree. Where plain `generate` fails, the others have to fail in the same way."""
    try:
        plain, plain_state, plain_puts = _generate(call, None)
    except Exception as failure:
        return [_other_failure(call, tree, failure) for tree in trees]
    prompt_len = _prompt_len(call)
    truth = plain.sequences[:, prompt_len:].tolist()
    outcomes = []
    for tree in trees:
        try:
            ours, state, puts = _with_tree(call, tree, truth)
        except ValueError as error:
            outcomes.append(_refused(call, error))
            continue
        if not hasattr(ours, "acceptance_lengths"):
            outcomes.append(_stepped_aside(call, tree, truth, torch.equal(plain.sequences, ours.sequences)))
            continue
        lengths = ours.acceptance_lengths
        outcome = Outcome(
            new_tokens=len(truth[0]), accepted=sum(map(sum, lengths)), verifications=sum(map(len, lengths))
        )
        if not torch.equal(plain.sequences, ours.sequences):
            if call.options["do_sample"] and call.of("dtype") != "float32":
                outcome.sampled_apart = "sequences"
            elif starts_at_a_near_tie(call, tree, truth, prompt_len, ours.sequences):
                outcome.near_tie = "sequences"
            else:
                outcome.mismatch = "sequences"
        elif not torch.equal(plain_state, state):
            outcome.mismatch = "state of the global generator"
        elif plain_puts != puts:
            outcome.mismatch = "what was streamed"
        else:
            outcome.mismatch = _different_outputs(call, plain, ours, prompt_len)
        outcomes.append(outcome)
    return outcomes


def _other_failure(call: Call, tree: Tree, expected: Exception) -> Outcome:
    """How a drafted call fails where the plain one does: alike, or with a refusal, which comes first."""
    try:
        _with_tree(call, tree, [[3] * 40] * 9)
    except Exception as failure:
        if type(failure) is type(expected) or _is_ours(failure):
            return Outcome(plain_failure=first_words(expected))
        return Outcome(mismatch=f"raised {failure!r} instead of {expected!r}")
    if isinstance(expected, ValueError):
        return Outcome(mismatch=f"did not raise {expected!r}")
    return Outcome(plain_failure=first_words(expected))  # where plain `generate` breaks, another one need not


def _is_ours(error: BaseException) -> bool:
    """Whether a refusal of ours is raised, and no error of another library that went through us."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and Path(frames[-1].filename).is_relative_to(PACKAGE)


def _refused(call: Call, error: ValueError) -> Outcome:
    """What a refusal is worth: it has a reason that is known for such calls, and comes before anything was drawn."""
    if not _is_ours(error):
        raise error
    reason = first_words(error)
    generator = torch.Generator().manual_seed(call.seed)
    if not torch.equal(torch.get_rng_state(), generator.get_state()):
        return Outcome(mismatch=f"refused after something was drawn: {reason}")
    if not any(re.search(pattern, str(error)) and is_so(call) for pattern, is_so in REFUSALS):
        return Outcome(mismatch=f"refused, which is not expected of such a call: {error}")
    return Outcome(refusal=reason)


def _stepped_aside(call: Call, tree: Tree, truth: list[list[int]], is_equal: bool) -> Outcome:
    """An attached head lets calls run plainly that are refused where it is passed."""
    if not is_equal:
        return Outcome(mismatch="sequences of a call that ran without its attached head")
    try:
        _with_tree(replace(call, kind=call.kind | {"head": "passed"}), tree, truth)
    except ValueError as error:
        return _refused(call, error)
    return Outcome(mismatch="ran without its attached head, and is drafted where it is passed")


def first_words(error: Exception) -> str:
    """The first sentence of an error without its numbers, so that equal reasons are counted together."""
    return f"{type(error).__name__}: {re.sub('[0-9]+', 'N', re.split('[.;](?: |$)', str(error))[0])}"[:160]


def _prompt_len(call: Call) -> int:
    if call.of("prompt") == "embeddings":
        return 0
    return _inputs(call)["input_ids"].shape[1]


def _different_outputs(call: Call, plain: Any, ours: Any, prompt_len: int) -> str:
    """Which output differs by more than rounding in rows that have not finished."""
    if cache_of(plain) is None or cache_of(ours) is None:
        return "" if cache_of(plain) is cache_of(ours) else "a cache that is missing"
    if _columns(cache_of(plain)) != _columns(cache_of(ours)):
        return "length of the cache"
    if any(getattr(layer, "record_past", False) for layer in cache_of(ours).layers):
        return "state of the cache"
    made = {name: value for name, value in ours.items() if name != "draft_trees"}
    made |= {f"cache {i}": vars(layer) for i, layer in enumerate(cache_of(ours).layers)}
    if places := inference_tensors(made) + inference_tensors(_target(call)):
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
                if name == "hidden_states":  # of several streams, rows stand behind them
                    one, other = one.movedim(-3, 0), other.movedim(-3, 0)
                if name in ("hidden_states", "attentions") and column == 0:
                    one, other = (_without_padding(call, states) for states in (one, other))
                # thresholds cut scores off at near ties
                if not _close(call, one[rows], other[rows]) and name != "scores":
                    return f"values of {name} at new token {column}"
    return ""


def tolerance(call: Call) -> float:
    """How far numbers may lie apart by rounding, relative to the largest."""
    if call.of("cache") == "fp8":
        return 0.1  # a value at the border of two numbers of 8 bits may be rounded to the other one
    return TOLERANCE if call.of("dtype") == "float32" else 16 * torch.finfo(DTYPES[call.of("dtype")]).eps


def _without_padding(call: Call, states: torch.Tensor) -> torch.Tensor:
    """
    States of the prompt, of shape `(batch_size, ..., seq_len, size)`, with 0 at padding: it attends to all columns of a
    cache alike, of which there are more where a tree has to fit in.
    """
    mask = _inputs(call).get("attention_mask")
    if mask is None:
        return states
    mask = mask[:, -states.shape[-2] :].repeat_interleave(len(states) // len(mask), dim=0).bool()
    return states.masked_fill(~mask.view(len(mask), *[1] * (states.dim() - 3), -1, 1), 0.0)


def _columns(cache: Any) -> list[int]:
    """Columns of its layers with keys and values of their own."""
    return [int(layer.get_seq_length()) for layer in cache.layers if getattr(layer, "keys", None) is not None]


def _close(call: Call, expected: torch.Tensor, got: torch.Tensor) -> bool:
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 1.0
    rounding = tolerance(call)
    return torch.allclose(got, expected, atol=rounding * max(scale, 1.0), rtol=rounding)


def _may_drift(call: Call) -> bool:
    """
    Whether a target's own logits may lie apart by more than rounding in half precision: a token is sent to other
    experts, or a recurrent state carries rounding on, without a draft as well.
    """
    layers, _, feed_forward, _ = TARGETS.get(call.architecture, ("recurrent", "", "experts", ""))
    return call.of("dtype") != "float32" and (feed_forward == "experts" or layers in ("recurrent", "state only"))


def starts_at_a_near_tie(
    call: Call, tree: Tree, truth: list[list[int]], prompt_len: int, sequences: torch.Tensor
) -> bool:
    """
    Whether the first difference between plain `generate` and `sequences` is one between two tokens that rounding
    decides, and all logits before agree. A tree that is sized by time may write another text when it is run again, and
    logits may drift in half precision: then the target's two best tokens alone decide.
    """
    more = {"output_scores": True, "output_logits": True}
    plain, *_ = _generate(call, None, **more)
    ours, *_ = _with_tree(call, tree, truth, **more)
    length = min(plain.sequences.shape[1], sequences.shape[1])
    different = (plain.sequences[:, :length] != sequences[:, :length]).nonzero()
    if not len(different):
        return False
    row, column = min(different.tolist(), key=lambda place: place[1])
    column -= prompt_len
    if column < 0:
        return False
    is_again = torch.equal(ours.sequences, sequences)
    if is_again and not _may_drift(call) and not _close(call, plain.logits[column][row], ours.logits[column][row]):
        return False
    expected = plain.scores[column][row]
    if is_again and not torch.equal(expected.isneginf(), ours.scores[column][row].isneginf()):
        return True  # a threshold (top-p and its like) between two tokens
    if call.options["do_sample"]:  # `multinomial` takes the largest ratio to one exponential per token
        torch.manual_seed(call.seed)
        for _ in range(column + 1):
            exponentials = torch.empty(len(plain.sequences), VOCAB_SIZE).exponential_()
        expected = (expected.softmax(-1) / exponentials[row]).log()
    best = expected.topk(2).values
    if call.of("dtype") == "float32":
        return bool(best[0] - best[1] <= tolerance(call) * best[0].abs().clamp(min=1.0))
    resolution = torch.finfo(DTYPES[call.of("dtype")]).eps * plain.logits[column][row].abs().max()
    return bool(best[0] - best[1] <= LARGEST_GAP * resolution)
