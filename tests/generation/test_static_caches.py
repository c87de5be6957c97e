"""
Static caches with targets that are more than full attention: hybrids, convolutions, ALiBi, and windows that the whole
text fits. The text and the cache are those of plain `generate` with the same cache, or the call is refused.
"""

import functools
from unittest import mock

import pytest
import torch
from architecture_verdicts import REFUSED, TREES, fitting_draft, verdict
from architectures import ARCHITECTURES, COMMON, VOCAB_SIZE
from doubles import ScriptedChainDrafter, ScriptedDrafter, random_draft
from every_decoder import NotBuiltError, model_types, tiny_decoder
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig, StaticCache
from transformers.cache_utils import CacheLayerMixin
from transformers.utils import logging

from eagle_hf.cache.fixed import fixed_sizes
from eagle_hf.target import chain as target_module
from eagle_hf.target.recurrent import DeferredReplay
from eagle_hf.versions import CACHE, STATIC_WINDOWS_GO_BACK, TRANSFORMERS, cache_of


NEW_TOKENS = 20
decoder_of = functools.lru_cache(maxsize=None)(tiny_decoder)

HYBRIDS = ["qwen3_next", "lfm2", "falcon_h1", "bloom"]  # recurrent, convolutions, both in one layer, ALiBi
OTHERS = ["bamba", "granitemoehybrid", "kimi_linear", "mpt", "nemotron_h", "olmo_hybrid", "zamba2"]
WINDOWED = ["gemma3-mixed", "gpt-oss-sinks", "qwen2-mixed", "mistral-sliding", "llama4-chunked"]
needs_windows = pytest.mark.skipif(not STATIC_WINDOWS_GO_BACK, reason="static windows are refused before 5.24")


@functools.cache
def windowed(name, window, dtype=torch.float32):
    """A target of `ARCHITECTURES` with another window."""
    model_type, extra = ARCHITECTURES[name]
    sizes = {key: window for key in ("sliding_window", "attention_chunk_size") if key in extra}
    config = AutoConfig.for_model(model_type, **(COMMON | extra | sizes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompts(rows):
    """One prompt, or three with padding."""
    ids = torch.randint(3, VOCAB_SIZE, (3, 11), generator=torch.Generator().manual_seed(5))[:rows]
    mask = torch.ones_like(ids)
    for row, padding in enumerate([0, 3, 6][:rows]):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def with_static_cache(target, form, rows=1, do_sample=False, columns=48, is_tree=False, hit_rate=0.8, **kwargs):
    """Outputs of plain `generate` and of `generate` with drafts that are partly right, each with a new static cache."""
    inputs, outputs = prompts(rows), []
    kwargs = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "return_dict_in_generate": True} | kwargs
    for is_drafted in (False, True):
        own = {"cache_implementation": "static"} if form == "named" else {}
        if form == "passed":
            own = {CACHE: StaticCache(config=target.config, max_cache_len=columns)}
        torch.manual_seed(3)
        call = functools.partial(target.generate, **inputs, **kwargs, **own, do_sample=do_sample)
        if not is_drafted:
            if target.config.model_type == "bloom" and Version("5.18") <= TRANSFORMERS < Version("5.23"):
                pytest.skip("plain `generate` of Bloom fails with a static cache in this transformers")
            outputs.append(call())
            continue
        truth = outputs[0].sequences[:, inputs["input_ids"].shape[1] :].tolist()
        drafter = (ScriptedDrafter if is_tree else ScriptedChainDrafter)(truth, seed=2, hit_rate=hit_rate)
        with mock.patch("eagle_hf.generation.decoding.open_drafter", return_value=drafter):
            outputs.append(call(assistant_model=fitting_draft(target)))
    return outputs


def assert_same_cache(plain, ours, is_real):
    """Equal layers, sizes and lengths; equal states in columns that are no padding."""
    assert type(ours) is type(plain)
    for expected, got in zip(plain.layers, ours.layers, strict=True):
        assert type(got) is type(expected)
        if getattr(expected, "keys", None) is not None:
            length = int(expected.get_seq_length())
            assert int(got.get_seq_length()) == length
            assert got.max_cache_len == expected.max_cache_len
            for name in ("keys", "values"):
                theirs, states = getattr(expected, name), getattr(got, name)
                assert states.shape == theirs.shape
                assert states.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
                columns = is_real[:, :length]
                pair = (tensor[:, :, :length].transpose(1, 2)[columns] for tensor in (states, theirs))
                torch.testing.assert_close(*pair, atol=2e-4, rtol=1e-3)
                assert not states[:, :, length:].any()
        for name in ("conv_states", "recurrent_states"):
            for index, state in getattr(expected, name, {}).items():
                if state is not None:
                    torch.testing.assert_close(getattr(got, name)[index], state, atol=2e-4, rtol=1e-3)


def is_real(rows, new_tokens=NEW_TOKENS):
    mask = prompts(rows)["attention_mask"].bool()
    return torch.cat([mask, torch.ones(rows, new_tokens - 1, dtype=torch.bool)], dim=1)


# ---------------------------------------------------------------------- hybrids


@pytest.mark.parametrize("form", ["named", "passed"])
@pytest.mark.parametrize("name", [*HYBRIDS, *(pytest.param(name, marks=pytest.mark.sweep) for name in OTHERS)])
def test_text_and_cache_are_those_of_plain_generate(name, form):
    target = decoder_of(name)
    for rows in (1, 3):
        for do_sample in (False, True):
            plain, ours = with_static_cache(target, form, rows, do_sample)
            assert torch.equal(plain.sequences, ours.sequences)
            assert ours.target_forwards < NEW_TOKENS
            assert len({n for row in ours.acceptance_lengths for n in row}) > 1  # rejections and accepts
            assert_same_cache(cache_of(plain), cache_of(ours), is_real(rows))


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
@pytest.mark.parametrize("hit_rate", [0.0, 1.0], ids=["rejected", "accepted"])
def test_a_second_turn_on_a_kept_static_cache(name, hit_rate):
    target, texts = decoder_of(name), []
    for output in with_static_cache(target, "passed", max_new_tokens=9, columns=64, hit_rate=hit_rate):
        ids = torch.cat([output.sequences, torch.tensor([[7, 9, 11]])], dim=1)
        texts.append(
            target.generate(
                ids, max_new_tokens=9, do_sample=False, eos_token_id=None, **{CACHE: cache_of(output)},
                assistant_model=fitting_draft(target) if texts else None,
            )
        )  # fmt: skip
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", ["qwen3_next", pytest.param("falcon_h1", marks=pytest.mark.sweep)])
def test_a_cache_that_ends_with_the_text(name):
    """There is no room for drafts behind it: chains shrink where the cache ends."""
    plain, ours = with_static_cache(decoder_of(name), "passed", rows=3, columns=11 + NEW_TOKENS - 1)
    assert torch.equal(plain.sequences, ours.sequences)


@pytest.mark.parametrize("name", ["bamba", "lfm2"])
def test_half_precision(name):
    """The states of both calls are rounded, but the chain's tokens meet the same ones."""
    target = decoder_of(name)
    half = type(target)(target.config).to(torch.bfloat16).eval()
    half.load_state_dict(target.state_dict())
    half.generation_config.pad_token_id = 0
    half.config._attn_implementation = "eager"
    plain, ours = with_static_cache(half, "named", rows=1)
    new = plain.sequences[0, 11:] == ours.sequences[0, 11:]
    parted = len(new) if new.all() else int((~new).nonzero()[0])
    if parted < len(new):  # at a near tie, and nowhere else
        with torch.no_grad():
            logits = half(plain.sequences[:, : 11 + parted]).logits[0, -1].float()
        best = logits.topk(2).values
        assert best[0] - best[1] <= 4 * 2**-7 * logits.abs().max()


@pytest.mark.parametrize(("name", "broken"), [("qwen3_next", "replay"), ("lfm2", "take_back"), ("bloom", "take_back")])
def test_states_that_are_not_brought_back_are_seen(monkeypatch, name, broken):
    """The negative control: without it, rejected drafts stay and the text differs."""
    target = decoder_of(name)
    with_static_cache(target, "named")  # the probe, which would see it as well
    if broken == "replay":
        monkeypatch.setattr(DeferredReplay, "undo", lambda replay: None)
    else:
        monkeypatch.setattr(target_module, "take_back", lambda cache, num_columns: None)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):  # raised by the drafter, which knows the truth
        with_static_cache(target, "named")


def test_windows_that_a_target_counts_from_the_end_of_its_cache_are_refused():
    """GPT-Neo cuts its window out of its own mask, by columns of the cache."""
    target = decoder_of("gpt_neo")
    for form in ("named", "passed"):
        with pytest.raises(ValueError, match="GPTNeoForCausalLM cannot verify drafts.*Generate without"):
            with_static_cache(target, form)
    assert target.generate(**prompts(1), assistant_model=random_draft(target), max_new_tokens=3).shape == (1, 14)


@pytest.fixture
def no_gpu_for_offloading(monkeypatch):
    """Offloaded layers move to other tensors after every update, and there is no stream to wait for."""
    monkeypatch.setattr(torch, "Stream", mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "default_stream", mock.MagicMock())

    def offload(layer):
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        moved.append(layer)

    moved = []
    monkeypatch.setattr(CacheLayerMixin, "offload", offload)
    yield
    assert moved


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
@pytest.mark.parametrize("form", ["named", "passed"])
def test_offloaded_static_caches(no_gpu_for_offloading, name, form):
    target, is_tree = decoder_of(name), name == "llama"
    for do_sample in (False, True):
        if form == "named":
            own = {"cache_implementation": "offloaded_static"}
            plain, ours = with_static_cache(target, None, 3, do_sample, is_tree=is_tree, **own)
        else:
            offloaded = functools.partial(StaticCache, offloading=True)
            with mock.patch(f"{__name__}.StaticCache", offloaded):
                plain, ours = with_static_cache(target, form, 3, do_sample, is_tree=is_tree)
        assert torch.equal(plain.sequences, ours.sequences)
        assert cache_of(ours).offloading
        assert fixed_sizes(cache_of(ours)) == fixed_sizes(cache_of(plain))


# ---------------------------------------------------------------------- windows


@needs_windows
@pytest.mark.parametrize("form", ["named", pytest.param("passed", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_text_that_fits_the_window(name, form):
    """Also where the cache is larger than the window, and where its last tree has no room."""
    for rows in (1, 3):
        for do_sample, window in ((False, 64), (True, 11 + NEW_TOKENS - 1)):
            target = windowed(name, window)
            plain, ours = with_static_cache(target, form, rows, do_sample, columns=80, is_tree=True)
            assert torch.equal(plain.sequences, ours.sequences)
            assert ours.target_forwards < NEW_TOKENS
            assert_same_cache(cache_of(plain), cache_of(ours), is_real(rows))


@needs_windows
def test_a_second_turn_within_the_window():
    target, texts = windowed("gemma3-mixed", 64), []
    for output in with_static_cache(target, "passed", max_new_tokens=9, columns=64, is_tree=True):
        ids = torch.cat([output.sequences, torch.tensor([[7, 9, 11]])], dim=1)
        kwargs = {"do_sample": False, "eos_token_id": None, CACHE: cache_of(output)}
        texts.append(
            target.generate(ids, max_new_tokens=9, assistant_model=random_draft(target) if texts else None, **kwargs)
        )
        with pytest.raises(ValueError, match="room for 64 columns, and a text of up to 72 tokens"):
            target.generate(
                torch.tensor([[4, 5]]), attention_mask=torch.ones(1, 34), max_new_tokens=38,
                assistant_model=random_draft(target), **kwargs,
            )  # fmt: skip
    assert torch.equal(*texts)


@needs_windows
@pytest.mark.parametrize("columns", [40, 80])
def test_attentions_are_as_wide_as_those_of_plain_generate(columns):
    target = windowed("gemma3-mixed", 40)
    target.set_attn_implementation("eager")
    try:
        plain, ours = with_static_cache(
            target, "passed", columns=columns, is_tree=True, output_attentions=True, output_hidden_states=True
        )
    finally:
        target.set_attn_implementation("sdpa")
    assert torch.equal(plain.sequences, ours.sequences)
    for expected, got in zip(plain.attentions, ours.attentions, strict=True):
        for theirs, weights in zip(expected, got, strict=True):
            torch.testing.assert_close(weights, theirs, atol=5e-4, rtol=1e-3)


@pytest.mark.sweep  # as plain `generate`, it compiles a graph for many of its steps
@needs_windows
def test_compiled_steps_within_the_window():
    """Layers with a window count their columns in Python as well, so that graphs have to follow the count."""
    torch._dynamo.reset()
    target = windowed("gemma3-mixed", 64)
    compile_config = CompileConfig(backend="eager", mode="default")
    plain, ours = with_static_cache(target, "named", 1, True, is_tree=True, compile_config=compile_config)
    assert torch.equal(plain.sequences, ours.sequences)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["gemma3-mixed", pytest.param("mistral-sliding", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("form", ["named", "passed"])
def test_a_longer_text_is_refused_with_the_reason_before_anything_is_written(name, form):
    target = windowed(name, 11 + NEW_TOKENS - 2)
    reason = "room for 29 columns, and a text of up to 31" if STATIC_WINDOWS_GO_BACK else "sliding-window"
    cache = StaticCache(config=target.config, max_cache_len=80)
    own = {"cache_implementation": "static"} if form == "named" else {CACHE: cache}
    with pytest.raises(ValueError, match=reason):
        target.generate(**prompts(1), assistant_model=random_draft(target), max_new_tokens=NEW_TOKENS, **own)
    assert not any(layer.is_initialized for layer in cache.layers)


# ---------------------------------------------------------------------- what is handed back


@pytest.mark.parametrize("rows", [1, 3])
def test_a_returned_static_cache_has_no_room_for_a_tree(rows):
    plain, ours = with_static_cache(decoder_of("llama"), "named", rows, is_tree=True)
    assert fixed_sizes(cache_of(ours)) == fixed_sizes(cache_of(plain))
    assert_same_cache(cache_of(plain), cache_of(ours), is_real(rows))


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_rows_that_fill_the_cache_before_the_others(do_sample):
    """The others go on where the last column of these lies, which they get back in the end."""
    for hit_rate in (0.4, 0.7, 1.0):
        plain, ours = with_static_cache(
            decoder_of("llama"), "passed", 3, do_sample, columns=11 + NEW_TOKENS - 1, is_tree=True, hit_rate=hit_rate
        )
        assert torch.equal(plain.sequences, ours.sequences)
        assert_same_cache(cache_of(plain), cache_of(ours), is_real(3))


# ---------------------------------------------------------------------- every decoder


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", list(model_types()))
def test_every_decoder_with_a_static_cache(model_type):
    logging.set_verbosity_error()
    try:
        target = tiny_decoder(model_type)
    except NotBuiltError as error:
        pytest.skip(str(error))
    verifies, _ = verdict(target)
    if verifies == REFUSED:
        return
    refused = []
    for form in ("named", "passed"):
        for rows in (1, 3):
            for do_sample in (False, True):
                try:
                    with_static_cache_plainly(target, form, rows)
                except Exception as error:
                    pytest.skip(f"plain generate fails with a static cache: {error}")
                try:
                    plain, ours = with_static_cache(target, form, rows, do_sample, is_tree=verifies == TREES)
                except ValueError as error:
                    refused.append(str(error))
                    continue
                assert torch.equal(plain.sequences, ours.sequences), (form, rows, do_sample)
                assert ours.target_forwards < NEW_TOKENS
    assert all("without the draft" in reason for reason in refused)


def with_static_cache_plainly(target, form, rows):
    own = {"cache_implementation": "static"}
    if form == "passed":
        own = {CACHE: StaticCache(config=target.config, max_cache_len=48)}
    target.generate(**prompts(rows), **own, max_new_tokens=3, do_sample=False)
