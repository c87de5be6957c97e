"""
transformers 5.24 renamed `past_key_values` to `cache`. From then on callers and readers may use either word, before it
the old one; and what `transformers` says of the old word is said of what the caller wrote, never of a call of ours.
"""

import copy
import pickle
import warnings

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB_SIZE, tiny_target
from doubles import random_draft
from every_decoder import tiny_decoder
from transformers import DynamicCache
from transformers.utils import logging

from eagle_hf import versions
from eagle_hf.versions import CACHE, cache_of


IDS = torch.randint(3, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(0))
GREEDY = {"do_sample": False, "max_new_tokens": 10, "return_dict_in_generate": True, "eos_token_id": None}
OLD = "past_key_values"
WORDS = [CACHE] if CACHE == OLD else ["cache", OLD]


def notices(word):
    """The warning that the caller of an old word gets, and nobody else."""
    if word == CACHE:
        return warnings.catch_warnings(action="error")
    return pytest.warns(FutureWarning, match=OLD)


TARGETS = ["llama", "gemma3-mixed", "mixtral-moe", "qwen3_next"]
TARGETS += [] if CACHE == OLD else ["mamba2"]  # before, its kind had a word of its own


@pytest.fixture(params=TARGETS)
def target(request):
    return (tiny_target if request.param in ARCHITECTURES else tiny_decoder)(request.param)


@pytest.mark.parametrize("word", WORDS)
def test_a_cache_may_be_passed_under_either_word(word, target):
    draft, texts = random_draft(target), []
    for assistant in (None, draft):
        cache = DynamicCache(config=target.config)
        with notices(word):
            first = target.generate(IDS, **{word: cache}, assistant_model=assistant, **GREEDY)
        assert cache_of(first) is cache
        ids = torch.cat([first.sequences, IDS[:, :3]], dim=1)
        with notices(word):
            texts.append(target.generate(ids, **{word: cache}, assistant_model=assistant, **GREEDY).sequences)
    assert torch.equal(*texts)


def test_outputs_are_read_under_either_word(target, old_words):
    draft = random_draft(target)
    drafted = target.generate(IDS, assistant_model=draft, **GREEDY)
    hidden = torch.zeros(1, 2, draft.config.hidden_size, dtype=draft.dtype)
    for output in (drafted, draft(hidden, hidden, use_cache=True)):
        assert not old_words
        assert output.cache is not None
        assert output.cache is output.past_key_values is output[CACHE] is cache_of(output)
        if CACHE == "cache":
            assert output[OLD] is output.cache
            assert old_words  # it was we who wrote the old word
            old_words.clear()
            logging.warning_once.cache_clear()
        for other in (copy.copy(output), pickle.loads(pickle.dumps(output))):  # noqa: S301
            assert type(other) is type(output)
            assert len(other.cache.layers) == len(output.cache.layers)


def test_the_head_takes_either_word_and_not_both():
    draft = random_draft(tiny_target("llama"))
    hidden = torch.randn(1, 4, draft.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(draft.dtype)
    whole = draft(hidden, hidden).last_hidden_state[:, 2:]
    for word in ("cache", OLD):
        cache = draft(hidden[:, :2], hidden[:, :2], use_cache=True).cache
        rest = draft(hidden[:, 2:], hidden[:, 2:], **{word: cache}).last_hidden_state
        torch.testing.assert_close(rest, whole)
    with pytest.raises(ValueError, match="two names of one argument"):
        draft(hidden, hidden, cache=cache, past_key_values=cache)


def test_no_word_of_another_version_is_in_the_calls_of_a_target(monkeypatch):
    """What the target's own `forward` is given, prefill and verification alike."""
    target, given = tiny_target("llama"), []
    forward = type(target).forward

    def watched(self, *args, **kwargs):
        given.append(set(kwargs))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(target), "forward", watched)
    target.generate(IDS, assistant_model=random_draft(target), **GREEDY)
    assert len(given) > 2
    assert all(names & set(versions.CACHE_NAMES) <= {CACHE} for names in given)


@pytest.mark.skipif(CACHE == OLD, reason="before 5.24 there is no notice")
def test_the_fixture_sees_the_notice_that_transformers_only_logs(old_words):
    target = tiny_target("llama")
    assert target(IDS, use_cache=True).past_key_values is not None
    assert old_words
    old_words.clear()
