"""A finished call leaves nothing behind, with the garbage collector off; what is kept on purpose does not grow."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import eagle_hf
from eagle_hf.drafting.auto_size import _KNOWN
from eagle_hf.drafting.drafter import Drafter
from eagle_hf.generation import converted_heads
from eagle_hf.target import probe


PROMPTS = torch.tensor([[5, 17, 40, 8, 33, 71], [9, 61, 3, 27, 80, 12]])
EVERYTHING = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
    "output_attentions": True,
}  # fmt: skip
TREE = {"num_assistant_tokens": 6, "draft_depth": 3, "draft_width": 2}
# What a case has besides greedy search in a batch of two: of the head, of the draft options, of the call.
CASES = {
    "greedy": ({}, {}, {}),
    "sampled": ({}, {}, {"do_sample": True}),
    "a single row": ({}, {}, {"rows": 1, "do_sample": True}),
    "eagle-1": ({"eagle_version": 1}, {}, {"do_sample": True}),
    "p-eagle": ({"parallel_drafting": True, "mask_token_id": 5}, {"draft_tree": "chain"}, {}),
    "static tree": ({}, {"draft_tree": "static"}, {}),
    "auto": ({}, {"draft_tree": "auto"}, {"rows": 1, "do_sample": True, "max_new_tokens": 40}),
    "looked up": ({}, {"draft_retrieval": 4}, {"rows": 1, "max_new_tokens": 30}),
    "everything recorded": ({}, {"output_draft_trees": True}, EVERYTHING),
    "static cache": ({}, {}, {"cache_implementation": "static", "disable_compile": True}),
    "one token": ({}, {}, {"max_new_tokens": 1}),
    "a processor": ({}, {}, {"repetition_penalty": 1.3}),
}


def alive():
    """Tensors, their bytes, and objects of this library and caches of `transformers`, all of which are reachable."""
    found, storages = Counter(), {}
    for each in gc.get_objects():
        kind = type(each)
        if issubclass(kind, torch.Tensor):
            found["tensor"] += 1
            if not each.is_meta:
                storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif str(kind.__module__).startswith(("eagle_hf", "transformers.cache_utils", "transformers.generation")):
            found[kind.__name__] += 1
    return found | {"bytes": sum(storages.values())}


@pytest.fixture(scope="module", autouse=True)
def only_new_objects():
    """What is there already is not looked at, which would take long."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_draft(target, config, options):
    is_sized = options.get("draft_tree") in ("chain", "static")
    return use_options(random_draft(target, **config), **({} if is_sized else TREE), **options)


def generate(target, draft, rows=2, **options):
    options = {"max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 0, "do_sample": False} | options
    prompts = PROMPTS[:rows]
    return target.generate(prompts, attention_mask=torch.ones_like(prompts), assistant_model=draft, **options)


@pytest.mark.parametrize("case", CASES)
def test_calls_leave_nothing_behind(case, no_collector):
    config, options, call = CASES[case]
    target = tiny_target("llama")
    if "output_attentions" in call:
        target.set_attn_implementation("eager")
    draft = make_draft(target, config, options)
    generate(target, draft, **call)
    before = alive()
    for _ in range(2):
        generate(target, draft, **call)
    assert alive() == before


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-mixed", "gpt2-learned-positions"])
def test_first_calls_leave_no_tensors(name, no_collector):
    """Which look into the target."""
    target = tiny_target(name)
    draft = make_draft(target, {}, {})
    before = alive()
    generate(target, draft)
    after = alive()
    assert (after["tensor"], after["bytes"]) == (before["tensor"], before["bytes"])


def fail(*args, **kwargs):
    raise ArithmeticError("on purpose")


class Processor(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return fail() if input_ids.shape[1] >= 9 else scores


class Criterion(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return fail() if input_ids.shape[1] >= 9 else torch.zeros(len(input_ids), dtype=torch.bool)


class Streamer(BaseStreamer):
    def put(self, value):
        return fail() if value.numel() == 1 else None

    def end(self):
        pass


FAILURES = {
    "a processor": {"logits_processor": LogitsProcessorList([Processor()])},
    "a stopping criterion": {"stopping_criteria": StoppingCriteriaList([Criterion()])},
    "a streamer": {"streamer": Streamer(), "rows": 1},
}


@pytest.mark.parametrize("where", [*FAILURES, "the head", "the target"])
def test_calls_that_fail_leave_nothing_behind(where, no_collector, monkeypatch):
    target = tiny_target("llama")
    draft = make_draft(target, {}, {})
    generate(target, draft)

    if where == "the head":
        monkeypatch.setattr(draft, "step", fail)
    elif where == "the target":
        draft.generation_config.draft_tree = "chain"
        monkeypatch.setattr("eagle_hf.target.target.forward_tree", fail)

    def call():
        with pytest.raises(ArithmeticError):
            generate(target, draft, do_sample=True, **FAILURES.get(where, {}))

    call()
    before = alive()
    call()
    assert alive() == before


def test_converted_heads_are_kept_once(no_collector):
    target = tiny_target("llama").to(torch.bfloat16)
    draft = make_draft(tiny_target("llama").float(), {}, {})
    generate(target, draft)
    before = alive()
    for _ in range(2):
        generate(target, draft)
    assert alive() == before


def test_what_is_kept_does_not_grow():
    """Nor with many different calls."""
    targets = [tiny_target("llama").float(), tiny_target("llama").to(torch.bfloat16)]
    draft = make_draft(targets[0], {}, {"draft_tree": "auto"})

    def kept():
        sizings = {target: len(known) for target, known in _KNOWN[draft].items()}
        verdicts = [len(probe._VERDICTS[target]) for target in targets]
        return len(converted_heads._COPIES[draft]), sizings, verdicts

    def call(i):
        for target in targets:
            generate(target, draft, rows=1 + i % 2, do_sample=i % 4 > 1, max_new_tokens=3 + i)

    for i in range(4):
        call(i)
    before = kept()
    for i in range(10):
        call(i)
    assert kept() == before


def test_what_is_kept_goes_with_its_object_or_on_request():
    target, draft = (
        tiny_target("llama").to(torch.bfloat16),
        make_draft(tiny_target("llama").float(), {}, {"draft_tree": "auto"}),
    )
    generate(target, draft)
    assert target in probe._VERDICTS
    assert target in _KNOWN[draft]
    eagle_hf.forget(target)
    assert target not in probe._VERDICTS
    assert target not in _KNOWN[draft]
    assert draft in converted_heads._COPIES
    generate(target, draft)
    eagle_hf.forget(draft)
    assert draft not in _KNOWN
    assert draft not in converted_heads._COPIES
    generate(target, draft)
    sizes = len(probe._VERDICTS), len(_KNOWN), len(converted_heads._COPIES)
    gone = weakref.ref(target), weakref.ref(draft)
    del target, draft
    gc.collect()  # modules of `transformers` may refer to themselves
    assert [each() for each in gone] == [None, None]
    assert (len(probe._VERDICTS), len(_KNOWN), len(converted_heads._COPIES)) < sizes


def test_a_cycle_is_found(no_collector, monkeypatch):
    """As there was one from the drafter's noise to the drafter."""
    begin = Drafter.__init__

    def with_cycle(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.myself = self

    monkeypatch.setattr(Drafter, "__init__", with_cycle)
    with pytest.raises(AssertionError):
        test_calls_leave_nothing_behind("greedy", None)
