"""Heads that are attached: used without being passed, left out with one warning where a call cannot be drafted."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.utils import logging

import eagle_hf
from eagle_hf import EagleGenerateOutput
from eagle_hf.generation.attaching import AttachedGenerate
from eagle_hf.versions import CACHE


PROMPT = torch.tensor([[5, 17, 33, 8, 61]])
PREFIX = "Calls like this one run without the attached draft, as plain `generate`: "


@pytest.fixture(scope="module")
def target():
    return tiny_target("llama")


@pytest.fixture
def draft(target):
    return use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)


@pytest.fixture
def attached(target, draft):
    eagle_hf.attach(target, draft)
    yield target
    eagle_hf.detach(target)


def greedy(target, **kwargs):
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    return target.generate(PROMPT, **settings | kwargs)


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def plainly(self, input_ids, *args, **kwargs):
    return self._sample(input_ids, *args, **kwargs)


def test_attached_drafts_are_used_until_detached(target, draft):
    plain = greedy(target).sequences
    eagle_hf.attach(target, draft)
    try:
        output = greedy(target)
        assert isinstance(output, EagleGenerateOutput)
        assert torch.equal(output.sequences, plain)
        eagle_hf.attach(target, draft)  # replaces, does not nest
    finally:
        eagle_hf.detach(target)
    assert not {"generate", "init_continuous_batching"} & set(vars(target))
    assert not isinstance(greedy(target), EagleGenerateOutput)
    eagle_hf.detach(target)


def test_whoever_looks_at_generate_sees_what_it_takes(attached):
    assert "generation_config" in inspect.signature(attached.generate).parameters
    assert inspect.signature(attached.generate) == inspect.signature(attached.generate.previous)


@pytest.mark.parametrize("own", [{"num_beams": 2}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_what_the_targets_own_config_asks_for_is_done(own, caplog):
    target = tiny_target("llama")
    eagle_hf.attach(target, random_draft(target))
    target.generation_config.update(**own)
    output = greedy(target)
    assert torch.equal(output.sequences, greedy(target, assistant_model=None).sequences)
    assert not isinstance(output, EagleGenerateOutput)
    assert len([message for message in warnings_of(caplog) if message.startswith(PREFIX)]) == 1


def test_a_passed_assistant_wins(attached):
    assert not isinstance(greedy(attached, assistant_model=None), EagleGenerateOutput)
    other = use_options(random_draft(attached), num_assistant_tokens=2, output_draft_trees=True)
    assert {tree.num_nodes for tree, _ in greedy(attached, assistant_model=other).draft_trees} <= {1, 2, 3}
    positional = attached.generate(PROMPT, None, None, None, None, None, other, max_new_tokens=4)
    assert torch.equal(positional, attached.generate(PROMPT, max_new_tokens=4, assistant_model=None))
    with pytest.raises(ValueError, match="use_cache=False"):
        greedy(attached, assistant_model=other, use_cache=False)


def test_what_was_there_comes_back(target, draft):
    target.generate = mine = target.generate
    try:
        eagle_hf.attach(target, draft)
        eagle_hf.detach(target)
        assert vars(target)["generate"] is mine
    finally:
        del target.__dict__["generate"]


def test_a_wrong_pair_is_refused_when_attaching(draft):
    draft.config.vocab_size = 50
    with pytest.raises(ValueError, match="vocabulary"):
        eagle_hf.attach(tiny_target("gpt-neox"), draft)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_cache": False}, "`use_cache=False`, but verifying drafts needs"),
        ({"generation_config": GenerationConfig(use_cache=False, max_new_tokens=12)}, "`use_cache=False`"),
        ({"cache_implementation": "offloaded_static"}, "`cache_implementation='offloaded_static'`"),
        ({"num_beams": 2}, "the call asks for beam search, and drafts go with greedy search or sampling."),
        ({"num_beams": 2, "do_sample": True}, "the call asks for beam sample"),
        ({"custom_generate": plainly}, "`custom_generate` is a way to generate of its own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_calls_that_cannot_be_drafted_run_as_plain_generate(attached, caplog, options, reason):
    if options.get("cache_implementation") == "offloaded_static" and not torch.cuda.is_available():
        pytest.skip("plain `generate` needs an accelerator for it")
    drafting = {} if "custom_generate" in options else {"draft_tree": "chain", "num_assistant_tokens": 3}
    for _ in range(2):
        torch.manual_seed(0)
        output = greedy(attached, **copy.deepcopy(options), **drafting)
        torch.manual_seed(0)
        plain = greedy(attached, assistant_model=None, **copy.deepcopy(options))
        assert torch.equal(output.sequences, plain.sequences)
        assert not isinstance(output, EagleGenerateOutput)
    (warning,) = [message for message in warnings_of(caplog) if "attached" in message or "assistant" in message]
    assert warning.startswith(PREFIX)
    assert reason in warning
    assert "without the draft" not in warning  # whoever called did not pass one
    assert isinstance(greedy(attached), EagleGenerateOutput)


def test_looking_up_goes_with_the_head_and_without_it_is_that_of_transformers(attached, monkeypatch):
    looked_up = []
    theirs = PromptLookupCandidateGenerator.get_candidates
    monkeypatch.setattr(
        PromptLookupCandidateGenerator, "get_candidates",
        lambda *args, **kwargs: (looked_up.append(1), theirs(*args, **kwargs))[1],
    )  # fmt: skip
    assert isinstance(greedy(attached, prompt_lookup_num_tokens=3), EagleGenerateOutput)
    assert not looked_up
    monkeypatch.setattr(AttachedGenerate, "_refusal", lambda *args: "for the test")
    output = greedy(attached, prompt_lookup_num_tokens=3)
    assert looked_up
    assert torch.equal(output.sequences, greedy(attached, assistant_model=None).sequences)


def test_every_reason_is_said_once_and_for_every_target(attached, caplog):
    for _ in range(2):
        greedy(attached, use_cache=False)
        greedy(attached, num_beams=2)
    eagle_hf.attach(attached, random_draft(attached))
    greedy(attached, use_cache=False)
    assert len(warnings_of(caplog)) == 3


@pytest.mark.parametrize("passed", [True, False], ids=["passed", "by name"])
def test_caches_that_are_only_known_when_they_are_made(caplog, passed):
    sliding = tiny_target("mistral-sliding")

    def options():
        long = {"max_new_tokens": 30}
        if passed:
            return {CACHE: StaticCache(config=sliding.config, max_cache_len=64), **long}
        return {"cache_implementation": "static", **long}

    plain = greedy(sliding, **options()).sequences
    eagle_hf.attach(sliding, random_draft(sliding))

    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    streamer = Streamer()
    output = greedy(sliding, **options(), streamer=streamer)
    assert torch.equal(output.sequences, plain)
    assert streamer.tokens == [*plain[0].tolist(), "end"]  # the prompt once
    (warning,) = warnings_of(caplog)
    assert warning.startswith(PREFIX + "Got a static cache with sliding-window layers")
    assert isinstance(greedy(sliding, **{CACHE: DynamicCache(config=sliding.config)}), EagleGenerateOutput)


def test_wrong_options_of_the_draft_are_errors_all_the_same(attached):
    for options in ({"draft_widht": 3}, {"draft_tree": "bush", "use_cache": False}):
        with pytest.raises(ValueError, match="draft_"):
            greedy(attached, **options)


def test_continuous_batching_says_that_it_drafts_nothing(attached, caplog):
    fields = ContinuousBatchingConfig.__dataclass_fields__
    pages = {"page_size" if "page_size" in fields else "block_size": 16}  # renamed
    small = ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=32, **pages)
    options = {"continuous_batching_config": small, "warmup": False}
    options["generation_config"] = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = attached.generate_batch([PROMPT[0].tolist()], **copy.deepcopy(options))
    text = next(iter(outputs.values())).generated_tokens
    paged = attached.generate(PROMPT, cache_implementation="paged", **copy.deepcopy(options))
    (warning,) = [message for message in warnings_of(caplog) if "attached" in message or "assistant" in message]
    assert warning.startswith(PREFIX + "continuous batching (`generate_batch`, `cache_implementation='paged'`)")
    plain = greedy(attached, assistant_model=None, max_new_tokens=4).sequences[0, PROMPT.shape[1] :].tolist()
    assert text == plain
    assert paged.flatten().tolist() == PROMPT[0].tolist() + plain


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_an_attached_target_draft_by_themselves(way):
    attached = tiny_target("llama")  # unused: the hooks by which `transformers` reads hidden states cannot be pickled
    draft = random_draft(attached)
    eagle_hf.attach(attached, draft)
    if way == "deepcopy":
        copied = copy.deepcopy(attached)
        assert copied.generate.attached.draft is draft
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(attached))  # noqa: S301
    else:
        file = io.BytesIO()
        torch.save(attached, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert copied.generate.previous.__self__ is copied  # not the original
    with torch.no_grad():
        copied.lm_head.weight.add_(0.1 * torch.randn(copied.lm_head.weight.shape))
    output = greedy(copied)
    assert isinstance(output, EagleGenerateOutput)
    assert torch.equal(output.sequences, greedy(copied, assistant_model=None).sequences)
    eagle_hf.detach(copied)
    assert not {"generate", "init_continuous_batching"} & set(vars(copied))
    assert isinstance(greedy(attached), EagleGenerateOutput)


def test_saving_an_attached_target_saves_the_target(attached, tmp_path):
    attached.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == attached.state_dict().keys()
    assert "generate" not in vars(loaded)
    assert torch.equal(greedy(loaded).sequences, greedy(attached).sequences)
