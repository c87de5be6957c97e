"""Steps run in inference mode, and nothing that anybody gets to see afterwards was made in it."""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB_SIZE, tiny_target
from doubles import inference_tensors, random_draft
from every_decoder import tiny_decoder
from target_dtype import TARGET_DTYPE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaForCausalLM

from eagle_hf.target import target as stepping
from eagle_hf.target.inference_mode import StepMode
from eagle_hf.versions import CACHE, cache_of


IDS = torch.tensor([[5, 9, 33, 2, 7, 41, 8, 60, 12, 3], [0, 0, 0, 14, 7, 4, 8, 61, 12, 5]])
OPTIONS = {"attention_mask": (IDS != 0).long(), "max_new_tokens": 20, "eos_token_id": None, "do_sample": False}
EVERYTHING = ("output_scores", "output_logits", "output_hidden_states", "output_attentions", "return_dict_in_generate")


@pytest.fixture
def modes(monkeypatch):
    """Whether the steps' forwards ran in inference mode, step by step."""
    seen = []

    def noting(forward, *args, **kwargs):
        seen.append(torch.is_inference_mode_enabled())
        return forward(*args, **kwargs)

    for name in ("forward_tree", "forward_chain"):
        monkeypatch.setattr(stepping, name, functools.partial(noting, getattr(stepping, name)))
    return seen


def is_plain_cache(cache):
    mode = StepMode(tiny_target("llama"))
    mode.see_cache(cache)
    return mode.is_inference


def generate(target, rows=2, **options):
    return target.generate(IDS[:rows], **OPTIONS | options, assistant_model=random_draft(target))


@pytest.mark.parametrize("feature_layer_ids", [[1, 2], [0, 1, 2], [-1]])
def test_steps_of_an_ordinary_target_run_in_it(modes, feature_layer_ids):
    target = tiny_target("llama")
    draft = random_draft(target, feature_layer_ids=feature_layer_ids)
    for _ in range(2):  # `transformers` may have left hooks
        target.generate(IDS, **OPTIONS, assistant_model=draft)
    assert set(modes) == {True}


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-mixed", "gpt2-learned-positions"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_nothing_that_is_returned_was_made_in_it(modes, name, rows, do_sample, temperature):
    target = tiny_target(name)
    target.set_attn_implementation("eager")  # returns attentions
    inputs = {"attention_mask": OPTIONS["attention_mask"][:rows], "do_sample": do_sample}
    inputs |= {"temperature": temperature} if do_sample else {}
    output = target.generate(
        IDS[:rows], **OPTIONS | dict.fromkeys(EVERYTHING, True) | inputs, assistant_model=random_draft(target)
    )
    assert set(modes) == {True}
    assert not inference_tensors({name: value for name, value in output.items() if name != "draft_trees"})
    assert not inference_tensors([vars(layer) for layer in cache_of(output).layers])
    assert not inference_tensors(target)


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
def test_a_cache_of_the_users_can_be_trained_through_and_written_to(modes, name):
    target = tiny_target(name)
    cache = DynamicCache(config=target.config)
    output = target.generate(
        IDS[:1], **OPTIONS | {"attention_mask": None}, **{CACHE: cache}, assistant_model=random_draft(target)
    )
    assert set(modes) == {True}
    logits = target(output[:, -1:], **{CACHE: cache}).logits
    logits.sum().backward()
    assert target.get_input_embeddings().weight.grad is not None
    cache.layers[0].keys[..., :1, :] = 0


def test_a_static_cache_of_the_users_stays_ordinary(modes):
    target = tiny_target("llama")
    output = generate(target, cache_implementation="static", return_dict_in_generate=True)
    assert set(modes) == {True}
    assert not inference_tensors([vars(layer) for layer in cache_of(output).layers])


def test_a_second_turn_goes_on_from_the_cache_of_the_first(modes):
    target = tiny_target("llama")
    draft = random_draft(target)
    texts = []
    for assistant in ({}, {"assistant_model": draft}):
        cache = DynamicCache(config=target.config)
        ids = IDS[:1]
        for _ in range(3):
            ids = target.generate(ids, **OPTIONS | {"attention_mask": None}, **{CACHE: cache}, **assistant)
        texts.append(ids)
    assert torch.equal(*texts)
    assert set(modes) == {True}


def test_an_interrupted_call_leaves_an_ordinary_cache_and_target(modes):
    class Interrupting:
        calls = 0

        def put(self, value):
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt

        def end(self):
            raise AssertionError

    target = tiny_target("llama")
    cache = DynamicCache(config=target.config)
    with pytest.raises(KeyboardInterrupt):
        target.generate(
            IDS[:1], **OPTIONS | {"attention_mask": None}, **{CACHE: cache}, streamer=Interrupting(),
            assistant_model=random_draft(target),
        )  # fmt: skip
    assert set(modes) == {True}
    assert not inference_tensors([target, *map(vars, cache.layers)])


def test_a_table_of_positions_that_grows_with_the_text_stays_ordinary(modes):
    config = AutoConfig.for_model(
        "xglm", vocab_size=VOCAB_SIZE, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(config).to(TARGET_DTYPE).eval()
    plain = copy.deepcopy(target).generate(IDS, **OPTIONS)
    size = len(target.model.embed_positions.weights)
    assert torch.equal(generate(target), plain)
    assert set(modes) == {True}
    assert len(target.model.embed_positions.weights) > size
    assert not inference_tensors(target)


@contextmanager
def global_hook():
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        yield
    finally:
        hook.remove()


def test_what_hooks_see_meets_autograd(modes):
    """A probe trained on what a hook has kept: plain `generate` allows it."""
    target = tiny_target("llama")
    kept = []
    hook = target.model.layers[1].register_forward_hook(lambda module, args, output: kept.append(output))
    generate(target)
    hook.remove()
    assert set(modes) == {False}
    probe = nn.Linear(32, 1, dtype=target.dtype)
    probe(kept[-1]).sum().backward()
    generate(target)
    assert modes[-1]


class OwnLlama(LlamaForCausalLM):
    """A model of somebody else, who may keep what passes through it."""


class OwnParameter(nn.Parameter):
    """As quantized and distributed weights are."""


def own_class(target):
    target.__class__ = OwnLlama


def own_module(target):
    class Recorder(nn.Sequential):
        pass

    target.model.layers[0].mlp = Recorder(target.model.layers[0].mlp)


def own_forward(target):
    target.model.norm.forward = target.model.norm.forward


def own_weight(target):
    target.lm_head.weight = OwnParameter(target.lm_head.weight.data)


def compiled_layer(target):
    target.model.layers[0]._compiled_call_impl = target.model.layers[0]._call_impl


def hook_before(target):
    target.model.layers[0].register_forward_pre_hook(lambda *args: None)


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("change", [own_class, own_module, own_forward, own_weight, compiled_layer, hook_before])
def test_targets_that_may_be_watched_run_as_in_plain_generate(modes, change, do_sample):
    target = tiny_target("llama")
    assert StepMode(target).is_inference
    change(target)
    assert not StepMode(target).is_inference
    torch.manual_seed(0)
    plain = target.generate(IDS, **OPTIONS | {"do_sample": do_sample})
    torch.manual_seed(0)
    assert torch.equal(generate(target, do_sample=do_sample), plain)
    assert set(modes) == {False}


def test_global_hooks_count_as_well():
    target = tiny_target("llama")
    with global_hook():
        assert not StepMode(target).is_inference
    assert StepMode(target).is_inference


@pytest.mark.parametrize("name", ["bamba", "deepseek_v32"])
def test_caches_of_other_layers_are_no_plain_ones(modes, name):
    target = tiny_decoder(name)
    assert not is_plain_cache(DynamicCache(config=target.config))
    assert is_plain_cache(DynamicCache(config=tiny_target("llama").config))
    generate(target, rows=1, attention_mask=None)
    assert set(modes) == {False}


def test_offloaded_caches_are_no_plain_ones():
    assert not is_plain_cache(DynamicCache(config=tiny_target("llama").config, offloading=True))


def test_inference_mode_of_the_caller_stays(modes):
    target = tiny_target("llama")
    target.model.layers[0].register_forward_hook(lambda *args: None)
    plain = target.generate(IDS, **OPTIONS)
    with torch.inference_mode():
        ours = generate(target)
    assert set(modes) == {True}
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_targets_of_transformers_keep_to_themselves(name):
    assert StepMode(tiny_target(name)).is_inference


def test_inference_tensors_are_found_wherever_they_are():
    with torch.inference_mode():
        tensor = torch.ones(1)
    target = tiny_target("llama")
    assert not inference_tensors(target)
    assert inference_tensors([{"a": (tensor,)}]) == ["[0]['a'][0]"]
    target.model.register_buffer("kept", tensor)
    target.model.layers[0].kept = {"here": tensor}
    assert len(inference_tensors(target)) == 2
