"""Second turns on a cache, prompts given as embeddings, prompts read in chunks."""

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from promises import PROMPT_LENGTHS, left_padded_prompts, target_of, with_and_without_draft
from transformers import DynamicCache, LlamaForCausalLM

from eagle_hf.versions import CACHE, cache_of


KWARGS = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
TARGETS = pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-mixed", "gpt2-learned-positions"])


def next_turn(inputs, output, new_tokens):
    """The text so far and a next question, with its mask."""
    ids = torch.cat([output.sequences, new_tokens], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])], 1)
    return ids, mask.long()


@TARGETS
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
@pytest.mark.parametrize("full", [True, False], ids=["full-ids", "new-ids"])
def test_a_second_turn_on_the_returned_cache(name, lengths, full):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    question = torch.randint(3, 90, (len(lengths), 5), generator=torch.Generator().manual_seed(5))
    texts = []
    for first, second in ((None, None), (draft, draft), (draft, None), (None, draft)):
        output = target.generate(**inputs, max_new_tokens=9, assistant_model=first, **KWARGS)
        ids, mask = next_turn(inputs, output, question)
        if not full:  # the newest token of the first turn is not in the cache yet
            ids = ids[:, cache_of(output).get_seq_length() :]
        output = target.generate(
            input_ids=ids, attention_mask=mask, **{CACHE: cache_of(output)}, max_new_tokens=9,
            assistant_model=second, **KWARGS,
        )  # fmt: skip
        texts.append(output.sequences)
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_a_passed_cache_is_filled_as_plain_generate_fills_it():
    target, inputs = target_of("mistral-sliding"), left_padded_prompts((9,))
    caches = []
    for assistant in (None, random_draft(target)):
        cache = DynamicCache(config=target.config)
        target.generate(**inputs, max_new_tokens=14, **{CACHE: cache}, assistant_model=assistant, **KWARGS)
        caches.append(cache)
    for plain, ours in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(ours.keys, plain.keys, atol=1e-4, rtol=1e-4)
        assert ours.get_seq_length() == plain.get_seq_length() == 22


@TARGETS
def test_prompts_given_as_embeddings(monkeypatch, name):
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS)
    embeds = target.get_input_embeddings()(inputs["input_ids"])
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    texts = [
        target.generate(
            inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=9, assistant_model=assistant,
            **KWARGS,
        ).sequences
        for assistant in (None, draft)
    ]  # fmt: skip
    assert torch.equal(*texts)
    assert texts[0].shape[1] == 9


@TARGETS
def test_prompts_read_in_chunks(name):
    target, inputs = target_of(name), left_padded_prompts((40,))
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    kwargs = KWARGS | {"max_new_tokens": 9, "prefill_chunk_size": 16}
    texts = [target.generate(**inputs, assistant_model=assistant, **kwargs).sequences for assistant in (None, draft)]
    assert torch.equal(*texts)


def test_no_attention_mask_at_all(monkeypatch):
    target = target_of("llama")
    inputs = {"input_ids": torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(2))}
    plain, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, do_sample=False, eos_token_id=None)
    assert torch.equal(plain.sequences, ours.sequences)


def test_learned_positions_are_never_exceeded(monkeypatch):
    """The prompt nearly fills the table: trees shrink, and at its very end steps are plain."""
    target, inputs = target_of("gpt2-learned-positions"), left_padded_prompts((110,))
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=None, max_new_tokens=18
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert ours.sequences.shape[1] == 128


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_differs_at_near_ties_only(monkeypatch, dtype):
    """At the first difference, if any, the target's own two best tokens lie within rounding of each other."""
    target, inputs = tiny_target("llama", dtype=dtype), left_padded_prompts((13,))
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=None, max_new_tokens=40
    )
    different = (plain.sequences != ours.sequences)[0].nonzero()
    if len(different):
        assert dtype != torch.float64
        position = int(different[0])
        logits = target(plain.sequences[:, :position]).logits[0, -1].float()
        best = logits.topk(2).values
        assert best[0] - best[1] <= 4 * torch.finfo(dtype).eps * logits.abs().max()


class TiltedLlama(LlamaForCausalLM):
    """A target with an argument of its own, which matters in every forward."""

    def forward(self, *args, tilt=None, **kwargs):
        output = super().forward(*args, **kwargs)
        if tilt is not None:  # (batch_size, vocab_size)
            output.logits = output.logits + tilt[:, None]
        return output


@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_arguments_for_the_target_reach_every_forward(monkeypatch, lengths):
    target, inputs = TiltedLlama(target_of("llama").config).eval(), left_padded_prompts(lengths)
    target.load_state_dict(target_of("llama").state_dict())
    target.generation_config.pad_token_id = 0
    tilt = torch.randn(len(lengths), 96, generator=torch.Generator().manual_seed(1)) * 3
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs | {"tilt": tilt}, do_sample=False, eos_token_id=None
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert not torch.equal(plain.sequences, target_of("llama").generate(**inputs, max_new_tokens=24, eos_token_id=None))
