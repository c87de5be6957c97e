"""A cache of the user's is theirs again when a call ends, however it ends."""

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from eagle_hf.cache.growing import GrowingLayer
from eagle_hf.versions import CACHE


IDS = torch.tensor([[5, 9, 33, 2, 7, 41, 8, 60, 12, 3]])
OPTIONS = {"max_new_tokens": 12, "eos_token_id": None, "do_sample": False}


class Interrupting:
    """A streamer that fails at its fifth call, between a verification and the acceptance of its nodes."""

    def __init__(self):
        self.calls = 0

    def put(self, value):
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt

    def end(self):
        raise AssertionError


def interrupted_call(target, cache, where):
    """Text of plain `generate`; the cache has been through a call that was interrupted."""
    plain = target.generate(IDS, **OPTIONS)
    draft, calls, kwargs = random_draft(target), [], {}
    target.generate(IDS, **OPTIONS, assistant_model=draft)  # the probe has been made
    hook = None
    if where == "a streamer":
        kwargs["streamer"] = Interrupting()
    else:

        def interrupt(*args):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt

        hook = target.model.layers[1].register_forward_pre_hook(interrupt)  # the first layer has read the nodes
    with pytest.raises(KeyboardInterrupt):
        target.generate(IDS, **OPTIONS, **kwargs, **{CACHE: cache}, assistant_model=draft)
    if hook is not None:
        hook.remove()
    return plain


@pytest.mark.parametrize("where", ["a streamer", "a layer of the target"])
@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
def test_an_interrupted_call_leaves_the_cache_as_it_was_between_two_tokens(monkeypatch, name, where, is_static):
    if is_static and name != "llama":
        pytest.skip("the text has to fit a static window")
    monkeypatch.setattr(GrowingLayer, "FEW_BYTES", 0)
    target = tiny_target(name)
    cache = StaticCache(target.config, max_cache_len=48) if is_static else DynamicCache(config=target.config)
    kinds, attributes = [type(layer) for layer in cache.layers], set(vars(cache))
    plain = interrupted_call(target, cache, where)
    assert [type(layer) for layer in cache.layers] == kinds
    assert set(vars(cache)) <= attributes | {"_is_user_defined"}
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
    length = int(cache.get_seq_length())
    assert IDS.shape[1] <= length < plain.shape[1]
    fresh = DynamicCache(config=target.config)
    with torch.no_grad():
        target(plain[:, :length], **{CACHE: fresh}, use_cache=True)
    for expected, got in zip(fresh.layers, cache.layers, strict=True):
        slots = expected.keys.shape[-2]
        keys = got.keys[:, :, :slots] if is_static else got.keys
        torch.testing.assert_close(keys, expected.keys, atol=1e-4, rtol=1e-3)


def test_a_layer_that_grows_is_a_plain_one_again_even_if_nodes_cannot_be_dropped(monkeypatch):
    target, cache = tiny_target("llama"), DynamicCache()

    def fail(self, *args):
        raise ArithmeticError

    monkeypatch.setattr("eagle_hf.target.target.Target._kept", fail)
    with pytest.raises(ArithmeticError):
        target.generate(IDS, **OPTIONS, **{CACHE: cache}, assistant_model=random_draft(target))
    assert all(type(layer) is DynamicLayer for layer in cache.layers)
