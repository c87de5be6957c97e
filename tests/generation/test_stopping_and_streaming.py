"""Stop rules per token, streams token by token, and a clean model and cache whatever happens in between."""

import threading
import time

import pytest
import torch
from architectures import tiny_target
from doubles import letter_tokenizer
from promises import PROMPT_LENGTHS, an_eos_token, left_padded_prompts, target_of, with_and_without_draft
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from eagle_hf.drafting import drafter as drafting
from eagle_hf.versions import CACHE


LENGTHS = pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])


class Recorder(BaseStreamer):
    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        self.puts.append(value.clone())

    def end(self):
        self.ended += 1


class StopAfter(StoppingCriteria):
    """Stops a row when its newest token is a multiple of `n`; keeps what it was asked."""

    def __init__(self, n):
        self.n, self.calls = n, []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls.append(input_ids.clone())
        return input_ids[:, -1] % self.n == 0


@LENGTHS
@pytest.mark.parametrize("penalty", [None, 1.2], ids=["all-nodes", "token-by-token"])
@pytest.mark.parametrize("with_eos", [True, False], ids=["eos", "no-eos"])
def test_streamers_get_the_same_puts_in_the_same_order(monkeypatch, lengths, penalty, with_eos):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    eos = an_eos_token(target, inputs, do_sample=False, repetition_penalty=penalty) if with_eos else None
    recorders = [Recorder(), Recorder()]
    streamers = iter(recorders)
    real = target.generate
    monkeypatch.setattr(target, "generate", lambda **kwargs: real(**kwargs, streamer=next(streamers)), raising=False)
    kwargs = {"do_sample": False, "eos_token_id": eos, "repetition_penalty": penalty}
    with_and_without_draft(monkeypatch, target, inputs, draft=_draft(target), **kwargs)
    plain, ours = recorders
    assert len(plain.puts) == len(ours.puts)
    for expected, got in zip(plain.puts, ours.puts, strict=True):
        assert expected.dtype == got.dtype
        assert torch.equal(expected, got)
    assert plain.ended == ours.ended == 1


def _draft(target):
    from doubles import random_draft

    return random_draft(target)


@LENGTHS
def test_custom_criteria_are_asked_once_per_token_with_what_plain_generate_shows_them(monkeypatch, lengths):
    target, inputs = target_of("qwen2"), left_padded_prompts(lengths)
    criteria = [StopAfter(5), StopAfter(5)]
    given = iter(criteria)
    real = target.generate
    monkeypatch.setattr(
        target,
        "generate",
        lambda **kwargs: real(**kwargs, stopping_criteria=StoppingCriteriaList([next(given)])),
        raising=False,
    )
    for_plain, for_ours = criteria
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, draft=_draft(target), do_sample=False, eos_token_id=None
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert len(for_plain.calls) == len(for_ours.calls)
    assert all(torch.equal(a, b) for a, b in zip(for_plain.calls, for_ours.calls, strict=True))


@LENGTHS
@pytest.mark.parametrize("with_eos", [True, False], ids=["eos", "no-eos"])
def test_stop_strings_stop_inside_a_block(monkeypatch, lengths, with_eos):
    target, inputs = tiny_target("llama"), left_padded_prompts(lengths)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=28)
    # Only letters, so that the strings can be found in the text at all.
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]
    tokenizer = letter_tokenizer()
    tokens = target.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=None)
    text = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    stop = text[10:13].strip()
    eos = int(tokens[-1, -4]) if with_eos else None
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=eos, stop_strings=[stop], tokenizer=tokenizer
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert plain.sequences.shape[1] < tokens.shape[1] or len(lengths) > 1


@LENGTHS
def test_max_time_is_checked_after_every_token(monkeypatch, lengths):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    _, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, do_sample=False, eos_token_id=None, max_time=1e-9)
    assert ours.sequences.shape[1] == inputs["input_ids"].shape[1] + 1


def test_a_text_iterator_streamer_in_a_thread_yields_the_text():
    target, tokenizer = target_of("llama"), letter_tokenizer()
    ids = torch.tensor([[5, 6, 7]])
    kwargs = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = tokenizer.decode(target.generate(ids, **kwargs)[0, 3:])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    thread = threading.Thread(
        target=target.generate, args=(ids,), kwargs=kwargs | {"streamer": streamer, "assistant_model": _draft(target)}
    )
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


def test_generation_from_several_threads_with_one_draft():
    target, draft = target_of("mistral-sliding"), _draft(target_of("mistral-sliding"))
    prompts = [torch.randint(3, 90, (1, 6 + n), generator=torch.Generator().manual_seed(n)) for n in range(6)]
    expected = [target.generate(p, max_new_tokens=16, do_sample=False) for p in prompts]
    results = [None] * 6

    def work(n):
        results[n] = target.generate(prompts[n], max_new_tokens=16, do_sample=False, assistant_model=draft)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@pytest.mark.parametrize("name", ["mistral-sliding", "gpt-oss-sinks"])
def test_an_exception_of_a_streamer_leaves_model_and_cache_clean(name):
    from transformers import DynamicCache

    target, draft = target_of(name), _draft(target_of(name))
    implementation = target.config._attn_implementation
    cache = DynamicCache(config=target.config)

    class Cancelled(Exception):
        pass

    class Cancelling(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.puts) > 6:
                raise Cancelled

    ids = torch.arange(3, 12)[None]
    with pytest.raises(Cancelled):
        target.generate(
            ids, max_new_tokens=20, do_sample=False, **{CACHE: cache}, assistant_model=draft, streamer=Cancelling()
        )
    assert target.config._attn_implementation == implementation
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
    # The cache holds what was committed before the exception, and nothing of the tree that was being walked.
    length = cache.get_seq_length()
    reference = DynamicCache(config=target.config)
    text = target.generate(ids, max_new_tokens=20, do_sample=False)
    target(text[:, :length], **{CACHE: reference}, use_cache=True)
    for layer, expected in zip(cache.layers, reference.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, atol=1e-4, rtol=1e-4)
    plain = target.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(target.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=draft), plain)


class TestBrokenDraft:
    @pytest.fixture
    def draft(self):
        draft = _draft(target_of("llama"))
        draft.lm_head.weight.data.fill_(torch.nan)
        return draft

    @LENGTHS
    @pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
    @pytest.mark.parametrize("penalty", [None, 1.2], ids=["all-nodes", "token-by-token"])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_nan_in_the_draft_never_changes_the_text(self, draft, lengths, kind, penalty, do_sample):
        target, inputs = target_of("llama"), left_padded_prompts(lengths)
        draft.generation_config.draft_tree = kind
        kwargs = {"max_new_tokens": 16, "do_sample": do_sample, "repetition_penalty": penalty, "eos_token_id": None}
        torch.manual_seed(0)
        plain = target.generate(**inputs, **kwargs)
        torch.manual_seed(0)
        assert torch.equal(target.generate(**inputs, **kwargs, assistant_model=draft), plain)

    def test_it_is_said_once_and_drafting_stops(self, draft, monkeypatch):
        warnings = []
        monkeypatch.setattr(drafting.logger, "warning_once", warnings.append)
        output = target_of("llama").generate(
            torch.arange(3, 9)[None], max_new_tokens=16, do_sample=False, eos_token_id=None, assistant_model=draft,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert len(warnings) == 1
        assert "The draft's logits are NaN" in warnings[0]
        assert output.acceptance_lengths[0] == [1] * 15
        assert output.draft_forwards < 15

    def test_nan_features_of_the_target_do_no_harm_either(self, monkeypatch):
        target, draft = target_of("llama"), _draft(target_of("llama"))
        monkeypatch.setattr(type(draft), "project_features", lambda self, features: self.fc(features * torch.nan))
        ids = torch.arange(3, 9)[None]
        plain = target.generate(ids, max_new_tokens=12, do_sample=False)
        assert torch.equal(target.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=draft), plain)

    def test_nan_in_the_target_is_an_error_as_in_plain_sampling(self):
        target = tiny_target("llama")
        target.lm_head.weight.data[7] = torch.nan
        ids = torch.arange(3, 9)[None]
        with pytest.raises(RuntimeError, match="probability tensor contains"):
            target.generate(ids, max_new_tokens=4, do_sample=True)
        with pytest.raises(ValueError, match="gives NaN logits for ordinary tokens"):
            target.generate(ids, max_new_tokens=4, do_sample=True, assistant_model=_draft(target))

    def test_nan_in_the_target_later_on_names_the_place(self, monkeypatch):
        target, draft = target_of("llama"), _draft(target_of("llama"))
        ids = torch.arange(3, 9)[None]
        target.generate(ids, max_new_tokens=4, do_sample=True, assistant_model=draft)  # probed
        real = type(target.lm_head).forward
        monkeypatch.setattr(target.lm_head, "forward", lambda x: real(target.lm_head, x) * torch.nan, raising=False)
        with pytest.raises(ValueError, match="distribution after 6 tokens of row 0 contains NaN"):
            target.generate(ids, max_new_tokens=4, do_sample=True, assistant_model=draft)


def test_time_is_not_wasted_after_the_last_token(monkeypatch):
    """No tree is drafted that cannot be used, and no prompt read for none."""
    target, draft = target_of("llama"), _draft(target_of("llama"))
    start = time.time()
    output = target.generate(
        torch.arange(3, 9)[None], max_new_tokens=1, do_sample=False, assistant_model=draft, return_dict_in_generate=True
    )
    assert (output.target_forwards, output.draft_forwards) == (1, 0)
    output = target.generate(
        torch.arange(3, 9)[None], max_new_tokens=2, do_sample=False, eos_token_id=None, assistant_model=draft,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert (output.target_forwards, output.draft_forwards) == (2, 0)
    assert time.time() - start < 60
