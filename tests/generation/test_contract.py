"""Promises of `generate` that have no other place: what users pass in everyday calls works the same with a draft."""

import asyncio
import threading

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft
from lossless_cases import stop_tokenizer
from promises import PROMPT_LENGTHS, an_eos_token, left_padded_prompts, target_of, with_and_without_draft
from target_dtype import closeness
from transformers import (
    AsyncTextIteratorStreamer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

import eagle_hf
from eagle_hf.versions import CACHE


TARGETS = pytest.mark.parametrize(
    "name", ["llama", "gemma3-mixed", "mistral-sliding", "qwen3-moe", "gpt2-learned-positions", "deepseek-v3-mla"]
)
LENGTHS = pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
PROMPT = torch.tensor([[5, 17, 33, 8, 61]])


def draft_for(target, **config):
    return use_options(random_draft(target, **config), num_assistant_tokens=6, draft_depth=3, draft_width=2)


@TARGETS
@LENGTHS
def test_transition_scores(monkeypatch, name, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=True, top_k=9, eos_token_id=None, output_scores=True
    )
    expected, got = (
        target.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        for output in (plain, ours)
    )
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@LENGTHS
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])  # without a processor, and with one
def test_what_is_recorded_of_a_token_does_not_hold_its_whole_tree(lengths, do_sample, temperature):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    names = ("scores", "logits", "hidden_states")
    options = {"do_sample": do_sample, "return_dict_in_generate": True, "max_new_tokens": 12, "eos_token_id": None}
    options |= {"temperature": temperature} if do_sample else {}
    options |= {f"output_{name}": True for name in names}
    output = target.generate(**inputs, **options, assistant_model=draft_for(target))
    for name in names:
        for entry in getattr(output, name)[1:]:  # the first ones are those of the prompt
            for tensor in [entry] if torch.is_tensor(entry) else entry:
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "qwen3-moe"])
@LENGTHS
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["guidance", "kgw", "synthid"])
def test_processors_with_a_memory(monkeypatch, name, lengths, do_sample, kind):
    """Each of them would be wrong if it were called for a rejected branch, or not exactly once per token."""
    target, inputs = target_of(name), left_padded_prompts(lengths)
    options = {
        "guidance": {"guidance_scale": 1.7, "negative_prompt_ids": inputs["input_ids"][:, -3:]},
        "kgw": {"watermarking_config": WatermarkingConfig(bias=3.0)},
        "synthid": {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[3, 5, 7, 9], ngram_len=3)},
    }[kind]
    plain, ours, *states = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=do_sample, eos_token_id=an_eos_token(target, inputs), **options
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(*states)
    unprocessed = target.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert do_sample or not torch.equal(plain.sequences, unprocessed)  # the processor had a say


class Diary(LogitsProcessor):
    """A custom processor that keeps what it was shown, and depends on how often it was called."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.clone(), scores.clone()))
        favoured = (input_ids.sum(dim=1) + 31 * len(self.seen)) % scores.shape[1]
        return scores.scatter_add(1, favoured[:, None], torch.full((len(scores), 1), 3.0))


@TARGETS
@LENGTHS
def test_custom_processors_are_called_once_per_token_with_its_true_prefix(monkeypatch, name, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    diaries, real = [Diary(), Diary()], target.generate
    given = iter(diaries)
    monkeypatch.setattr(
        target,
        "generate",
        lambda **kwargs: real(**kwargs, logits_processor=LogitsProcessorList([next(given)])),
        raising=False,
    )
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, draft=random_draft(target), do_sample=False, eos_token_id=None
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert len(diaries[0].seen) == len(diaries[1].seen)
    for (expected_ids, expected_scores), (ids, scores) in zip(*(diary.seen for diary in diaries), strict=True):
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(scores, expected_scores, **closeness(expected_scores, 1e-3))


@TARGETS
def test_embeddings_together_with_ids(name):
    """The embeddings are read; the ids are there for processors and for the output."""
    target = target_of(name)
    inputs = left_padded_prompts(PROMPT_LENGTHS)
    embeds = target.get_input_embeddings()(inputs["input_ids"]).detach() * 1.1
    kwargs = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "repetition_penalty": 1.3}
    texts = [
        target.generate(**inputs, inputs_embeds=embeds, assistant_model=draft, **kwargs)
        for draft in (None, draft_for(target))
    ]
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], target.generate(**inputs, **kwargs))


@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
def test_token_healing(name):
    target, tokenizer = target_of(name), stop_tokenizer()
    tokenizer.bos_token = "<s>"
    prompt = tokenizer(["abc", "ba"], return_tensors="pt", padding=True)
    kwargs = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "tokenizer": tokenizer}
    texts = [
        target.generate(prompt.input_ids, attention_mask=prompt.attention_mask, token_healing=True, **kwargs, **draft)
        for draft in ({}, {"assistant_model": draft_for(target)})
    ]
    assert torch.equal(*texts)


@TARGETS
def test_several_sequences_of_several_prompts(name):
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS[:2])
    kwargs = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 3, "eos_token_id": [7, 11, 60]}
    texts, states = [], []
    for draft in (None, draft_for(target)):
        torch.manual_seed(0)
        texts.append(target.generate(**inputs, assistant_model=draft, **kwargs))
        states.append(torch.get_rng_state())
    assert torch.equal(*texts)
    assert torch.equal(*states)
    assert len(texts[0]) == 6


class Stumble(Exception):
    pass


class Stumbling:
    """Fails at its fifth call; a processor, a criterion or a function of allowed tokens."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 5:
            raise Stumble
        return self.result(*args)


class StumblingProcessor(Stumbling, LogitsProcessor):
    def result(self, input_ids, scores):
        return scores


class StumblingCriterion(Stumbling, StoppingCriteria):
    def result(self, input_ids, scores):
        return torch.zeros(len(input_ids), dtype=torch.bool)


class StumblingFunction(Stumbling):
    def result(self, row, input_ids):
        return list(range(3, 90))


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt-oss-sinks", "gemma3-mixed"])
@LENGTHS
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"logits_processor": [StumblingProcessor()]},
        lambda: {"stopping_criteria": [StumblingCriterion()]},
        lambda: {"prefix_allowed_tokens_fn": StumblingFunction()},
    ],
    ids=["processor", "criterion", "allowed-tokens"],
)
def test_exceptions_of_the_users_code_leave_model_and_cache_clean(name, lengths, make):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    draft, implementation = draft_for(target), target.config._attn_implementation
    kwargs = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    plain = target.generate(**inputs, **kwargs)
    cache = DynamicCache(config=target.config)
    with pytest.raises(Stumble):
        target.generate(**inputs, **kwargs, **{CACHE: cache}, assistant_model=draft, **make())
    assert target.config._attn_implementation == implementation
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
    # What the cache holds is the text so far, so that the user can go on from there.
    length = cache.get_seq_length()
    assert inputs["input_ids"].shape[1] <= length < plain.shape[1]
    mask = torch.nn.functional.pad(
        inputs["attention_mask"], (0, length + 1 - inputs["attention_mask"].shape[1]), value=1
    )
    resumed = target.generate(
        plain[:, : length + 1], attention_mask=mask, **{CACHE: cache}, assistant_model=draft, do_sample=False,
        eos_token_id=None, max_new_tokens=plain.shape[1] - length - 1,
    )  # fmt: skip
    assert torch.equal(resumed, plain)
    assert torch.equal(target.generate(**inputs, **kwargs, assistant_model=draft), plain)


class TestServers:
    """`transformers serve` calls `model.generate(**inputs, streamer=..., generation_config=..., tokenizer=...)`."""

    @pytest.fixture
    def target(self):
        target = tiny_target("llama")
        target.lm_head.weight.data[29:] = 0  # letters only, so that there is text
        target.lm_head.weight.data[:3] = 0
        eagle_hf.attach(target, draft_for(target))
        yield target
        eagle_hf.detach(target)

    def test_an_async_streamer_yields_the_text(self, target):
        tokenizer = letter_tokenizer()
        kwargs = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
        expected = tokenizer.decode(target.generate(PROMPT, assistant_model=None, **kwargs)[0, 5:])

        async def collect():
            streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
            thread = threading.Thread(target=target.generate, args=(PROMPT,), kwargs=kwargs | {"streamer": streamer})
            thread.start()
            text = "".join([piece async for piece in streamer])
            thread.join()
            return text

        assert asyncio.run(collect()) == expected

    def test_the_server_of_transformers(self, target):
        serving = pytest.importorskip("transformers.cli.serving.utils")
        tokenizer = letter_tokenizer()
        inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
        config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
        ids = target.generate(**inputs, generation_config=config, assistant_model=None)[0, 5:]
        expected = tokenizer.decode(ids, skip_special_tokens=True)

        async def serve():
            manager = serving.GenerateManager()

            async def streamed(cancel_after=None):
                queue, streamer = manager.generate_streaming(target, tokenizer, inputs, config, "request")
                pieces = []
                while (piece := await asyncio.wait_for(queue.get(), 60)) is not None:
                    assert isinstance(piece, str), piece
                    pieces.append(piece)
                    if len(pieces) == cancel_after:
                        streamer.cancel()
                return "".join(pieces), streamer.total_tokens

            first = await streamed()
            cancelled = await streamed(cancel_after=1)
            text, input_len, generated = await manager.generate_non_streaming(target, tokenizer, inputs, config, "r")
            return first, cancelled, (text, input_len, generated), await streamed()

        first, cancelled, (text, input_len, generated), again = asyncio.run(serve())
        assert first == again == (expected, 20)
        assert expected.startswith(cancelled[0])
        assert (text, input_len) == (expected, 5)
        assert torch.equal(generated, ids)


def test_threads_with_and_without_a_draft_share_a_model():
    """Every thread gets its text, and the model keeps the attention that it had."""
    target = target_of("qwen2-mixed")
    draft, implementation = draft_for(target), target.config._attn_implementation
    options = [
        {}, {"repetition_penalty": 1.3}, {"output_hidden_states": True, "return_dict_in_generate": True},
        {"min_new_tokens": 10}, {"eos_token_id": [7, 8, 9]}, {"no_repeat_ngram_size": 2},
    ]  # fmt: skip

    def generate(n, assistant):
        ids = torch.randint(3, 90, (1 + n % 2, 9), generator=torch.Generator().manual_seed(n + 40))
        kwargs = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None} | options[n % 6]
        output = target.generate(ids, assistant_model=assistant, **kwargs)
        return output if torch.is_tensor(output) else output.sequences

    expected = [generate(n, None) for n in range(12)]
    results = [None] * 12

    def work(n):
        results[n] = generate(n, draft if n % 4 else None)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))
    assert target.config._attn_implementation == implementation


class TestWhatCannotBeCombined:
    """The error, or the warning, is the one that users know from `generate` without a draft."""

    @pytest.mark.parametrize(
        "options",
        [
            {"penalty_alpha": 0.6, "top_k": 4},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
            {"num_beams": 2, "force_words_ids": [[5]]},
        ],
        ids=["contrastive", "beam-groups", "constrained"],
    )
    def test_other_ways_of_decoding(self, options):
        target = target_of("llama")
        errors = []
        for draft in (None, draft_for(target)):
            with pytest.raises(ValueError, match="trust_remote_code") as error:
                target.generate(PROMPT, max_new_tokens=4, do_sample=False, assistant_model=draft, **options)
            errors.append(str(error.value))
        assert errors[0] == errors[1]

    def test_dola_is_ignored_as_with_every_assistant(self):
        target = target_of("llama")
        options = {"max_new_tokens": 6, "do_sample": False}
        ours = target.generate(PROMPT, dola_layers="low", assistant_model=draft_for(target), **options)
        assert torch.equal(ours, target.generate(PROMPT, **options))

    @pytest.mark.parametrize("do_sample", [False, True])
    def test_beams_decode_without_the_draft(self, do_sample):
        target, texts = target_of("llama"), []
        for draft in (None, draft_for(target)):
            torch.manual_seed(0)
            texts.append(
                target.generate(
                    PROMPT, max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=do_sample,
                    assistant_model=draft,
                )
            )  # fmt: skip
        assert torch.equal(*texts)

    def test_continuous_batching(self):
        target = target_of("llama")
        with pytest.raises(NotImplementedError, match="assistant_model is not supported"):
            target.generate(PROMPT, max_new_tokens=4, cache_implementation="paged", assistant_model=draft_for(target))

    @pytest.mark.parametrize("name", ["num_draft_tokens", "eagle_depth", "output_draft_hidden_states"])
    def test_options_that_nobody_knows(self, name):
        target = target_of("llama")
        with pytest.raises(ValueError, match=rf"not used by the model: \['{name}'\]"):
            target.generate(PROMPT, max_new_tokens=4, assistant_model=draft_for(target), **{name: 5})

    def test_a_prompt_as_long_as_the_limit(self):
        target = target_of("llama")
        with pytest.raises(ValueError, match="`max_length` is set to 5"):
            target.generate(PROMPT, max_length=5, assistant_model=draft_for(target))
