"""Every kind of cache: the text is that of plain `generate` with the same one, handed back as it would be."""

import copy

import pytest
import torch
from architecture_verdicts import PROMPTS
from conftest import use_options
from doubles import ScriptedDrafter, random_draft, scripted
from every_decoder import tiny_decoder
from promises import PROMPT_LENGTHS, left_padded_prompts, target_of, with_and_without_draft
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer
from transformers.generation.streamers import BaseStreamer

from eagle_hf.cache.growing import GrowingLayer
from eagle_hf.generation.pairing import check_cache
from eagle_hf.target import target as target_module
from eagle_hf.versions import CACHE, FP8_LAYERS, cache_of


GREEDY = {"do_sample": False, "eos_token_id": None}
BATCHES = pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])


# ---------------------------------------------------------------------- windows


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3-mixed", "llama4-chunked"])
@pytest.mark.parametrize("lengths", [(6,), (7,), (8,), (9,), (9, 6, 7, 8)], ids=str)
def test_prompts_that_end_at_the_border_of_the_window(monkeypatch, name, lengths):
    """The window is 8 columns. The first tree lies before, on and behind its border."""
    target, inputs = target_of(name), left_padded_prompts(lengths)
    for drafter_seed in range(3):
        plain, ours, *_ = with_and_without_draft(
            monkeypatch, target, inputs, max_new_tokens=12, drafter_seed=drafter_seed, **GREEDY
        )
        assert torch.equal(plain.sequences, ours.sequences)


# ---------------------------------------------------------------------- layers that grow


class Interruption(Exception):
    pass


class InterruptingStreamer(BaseStreamer):
    def __init__(self):
        self.count = 0

    def put(self, value):
        self.count += 1
        if self.count == 9:
            raise Interruption

    def end(self):
        pass


def assert_clean(cache, like):
    """The cache consists of what plain `generate` leaves there, and holds no more memory."""
    for layer, expected in zip(cache.layers, like.layers, strict=True):
        assert type(layer) is type(expected)
        assert set(vars(layer)) == set(vars(expected))
        for states in (layer.keys, layer.values):
            assert states.is_contiguous()
            assert states.untyped_storage().nbytes() == states.numel() * states.element_size()


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "deepseek-v3-mla"])
def test_layers_grow_while_they_are_lent_and_are_plain_again_afterwards(monkeypatch, name):
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS)
    seen = []
    monkeypatch.setattr(GrowingLayer, "FEW_BYTES", 0)
    real = target_module.forward_tree

    def forward_tree(*args, **kwargs):
        output = real(*args, **kwargs)
        full = [layer for layer in cache_of(output).layers if not layer.is_sliding]
        seen.append(all(type(layer) is GrowingLayer for layer in full))
        assert max(layer._buffers[0].shape[-2] for layer in full) <= 16 + 24 + 64  # no more room than can be needed
        return output

    monkeypatch.setattr(target_module, "forward_tree", forward_tree)
    plain, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, **GREEDY)
    assert seen
    assert all(seen)
    assert torch.equal(plain.sequences, ours.sequences)
    assert_clean(cache_of(ours), like=cache_of(plain))
    copy.deepcopy(cache_of(ours))  # as prefix caching does


def test_a_cache_is_clean_after_an_exception_too():
    target, inputs = target_of("llama"), left_padded_prompts((13,))
    cache = DynamicCache(config=target.config)
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    with pytest.raises(Interruption):
        target.generate(
            **inputs, assistant_model=draft, **{CACHE: cache}, streamer=InterruptingStreamer(), max_new_tokens=20,
            **GREEDY,
        )  # fmt: skip
    assert {type(layer) for layer in cache.layers} == {DynamicLayer}
    assert cache.get_seq_length() >= 13


@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
def test_a_cache_that_was_filled_with_a_prefix_beforehand(name):
    """Prefix caching: one prefix, read once, and a copy of its cache for every question."""
    target, prefix = target_of(name), left_padded_prompts((12,))["input_ids"]
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    with torch.no_grad():
        cache = cache_of(target(prefix, **{CACHE: DynamicCache(config=target.config)}))
    before = [layer.keys.clone() for layer in cache.layers]
    for seed in range(2):
        question = torch.randint(3, 90, (1, 4), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([prefix, question], dim=1)
        plain, ours = (
            target.generate(
                ids, **{CACHE: copy.deepcopy(cache)}, assistant_model=assistant, max_new_tokens=10, **GREEDY
            )
            for assistant in (None, draft)
        )
        assert torch.equal(plain, ours)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


# ---------------------------------------------------------------------- offloaded


class OffloadedDouble(DynamicCache):
    """
    An offloaded cache without a GPU. Layers move between two places as the real ones do between GPU and CPU: away after
    their update, back when the layer before is updated; and the states are garbage until the move has been waited for.
    """

    def __init__(self, config):
        super().__init__(config=config)
        self.offloading, self.only_non_sliding = True, False
        self.is_away = [False] * len(self.layers)
        self.moving = []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.wait()  # the real one lets its two streams wait for each other
        self.move((layer_idx + 1) % len(self.layers), away=False)
        self.wait()
        layer = self.layers[layer_idx]
        assert not self.is_away[layer_idx]
        states = layer.update(key_states, value_states, *args, **kwargs)
        self.move(layer_idx, away=True)
        return states

    def move(self, index, away):
        layer = self.layers[index]
        self.is_away[index] = away
        if layer.is_initialized:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                arriving = torch.full_like(states, torch.nan)
                setattr(layer, name, arriving)
                self.moving.append((arriving, states))

    def wait(self):
        for arriving, states in self.moving:
            arriving.copy_(states)
        self.moving.clear()


class ForgivingDrafter(ScriptedDrafter):
    """Leaves it to the test to find wrong text."""

    def read_accepted(self, features, tokens, counts):
        self.emitted = [n + count for n, count in zip(self.emitted, counts, strict=True)]


def with_offloaded_cache(monkeypatch, target, inputs, waits=True):
    caches = [OffloadedDouble(target.config) for _ in range(2)]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: waits)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: [cache.wait() for cache in caches])
    texts = []
    for cache, assistant in zip(caches, (None, random_draft(target)), strict=True):
        if assistant is not None:
            truth = texts[0][:, inputs["input_ids"].shape[1] :].tolist()
            scripted(monkeypatch, lambda truth=truth: ForgivingDrafter(truth, seed=0))
        texts.append(
            target.generate(**inputs, assistant_model=assistant, **{CACHE: cache}, max_new_tokens=16, **GREEDY)
        )
        cache.wait()
    return texts, caches


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
@BATCHES
def test_offloaded_caches(monkeypatch, name, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    texts, (plain, ours) = with_offloaded_cache(monkeypatch, target, inputs)
    assert torch.equal(*texts)
    real = torch.cat([inputs["attention_mask"], torch.ones(len(lengths), 15, dtype=torch.long)], dim=1).bool()
    for layer, expected in zip(ours.layers, plain.layers, strict=True):
        assert type(layer) is type(expected)
        assert layer.keys.shape == expected.keys.shape
        columns = real[:, -layer.keys.shape[2] :, None].expand(-1, -1, layer.keys.shape[1])
        torch.testing.assert_close(
            layer.keys.transpose(1, 2)[columns], expected.keys.transpose(1, 2)[columns], atol=1e-4, rtol=1e-4
        )


def test_offloaded_states_must_have_arrived_before_nodes_are_kept(monkeypatch):
    """Or the test above would prove nothing."""
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    texts, _ = with_offloaded_cache(monkeypatch, target, inputs, waits=False)
    assert not torch.equal(*texts)


# ---------------------------------------------------------------------- quantised


@pytest.mark.skipif(not FP8_LAYERS, reason="this transformers has no 8-bit floating point cache")
@BATCHES
@pytest.mark.parametrize("do_sample", [False, True])
def test_eight_bit_floating_point_caches(monkeypatch, lengths, do_sample):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    fp8 = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    kwargs = {"do_sample": do_sample, "eos_token_id": None, "max_new_tokens": 40}
    plain, ours, *states = with_and_without_draft(monkeypatch, target, inputs, **kwargs, **fp8)
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(*states)
    torch.manual_seed(0)
    assert not torch.equal(target.generate(**inputs, **kwargs), plain.sequences)  # the rounding changes the text
    real = torch.cat([inputs["attention_mask"], torch.ones(len(lengths), 39, dtype=torch.long)], dim=1).bool()
    for layer, expected in zip(cache_of(ours).layers, cache_of(plain).layers, strict=True):
        assert layer.get_seq_length() == expected.get_seq_length() == inputs["input_ids"].shape[1] + 39
        for name in ("_quantized_keys", "_quantized_values"):
            got, wanted = (getattr(each, name)[0].float().transpose(1, 2)[real] for each in (layer, expected))
            assert (got == wanted).float().mean() > 0.99  # a value at a border may be rounded to its other side


@pytest.mark.skipif(not FP8_LAYERS, reason="this transformers has no 8-bit floating point cache")
@pytest.mark.parametrize("model_type", ["bloom", "mpt"])
def test_eight_bit_floating_point_caches_of_targets_that_verify_chains(model_type):
    target = tiny_decoder(model_type)
    draft = use_options(random_draft(target), num_assistant_tokens=4, draft_depth=4, draft_tree="chain")
    fp8 = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}, "max_new_tokens": 20}
    plain, ours = (
        target.generate(**PROMPTS, **fp8, **GREEDY, assistant_model=assistant, return_dict_in_generate=True)
        for assistant in (None, draft)
    )
    assert torch.equal(plain.sequences, ours.sequences)
    for layer, expected in zip(cache_of(ours).layers, cache_of(plain).layers, strict=True):
        assert layer.get_seq_length() == expected.get_seq_length()
        assert layer._quantized_keys[0].shape == expected._quantized_keys[0].shape


class ManyTokensAtOnce(QuantizedLayer):
    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, q_tensor):
        return q_tensor


def test_caches_that_round_many_tokens_together_are_refused_with_the_reason():
    target, draft = target_of("llama"), random_draft(target_of("llama"))
    for options in ({}, {"cache_config": {"backend": "hqq"}}):
        with pytest.raises(ValueError, match="rounds many tokens together"):
            target.generate(
                torch.tensor([[5, 6]]), assistant_model=draft, cache_implementation="quantized", max_new_tokens=4,
                **options,
            )  # fmt: skip
    cache = DynamicCache(config=target.config)
    cache.layers[1] = ManyTokensAtOnce()
    with pytest.raises(ValueError, match="layers of type ManyTokensAtOnce, but this backend rounds many tokens"):
        check_cache(cache)
