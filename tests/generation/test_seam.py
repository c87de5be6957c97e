"""Getting in: installed once, reversible, only for our drafts; attaching; pipelines; refusals at the door."""

import inspect
from pathlib import Path

import pytest
import torch
import transformers
from architectures import tiny_target
from conftest import golden_draft, use_options
from doubles import letter_tokenizer, random_draft
from target_dtype import TARGET_DTYPE
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, T5Config, pipeline
from transformers.generation import GenerationMixin

import eagle_hf
from eagle_hf import EagleConfig, EagleDraftModel
from eagle_hf.generation import seam
from eagle_hf.versions import CACHE


PROMPT = torch.tensor([[5, 17, 33, 8, 61]])


@pytest.fixture(scope="module")
def target():
    return tiny_target("llama")


@pytest.fixture
def draft(target):
    return use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)


def greedy(target, **kwargs):
    return target.generate(PROMPT, max_new_tokens=12, do_sample=False, eos_token_id=None, **kwargs)


class TestInstall:
    def test_installing_again_does_nothing_and_uninstalling_restores(self):
        wrapped = GenerationMixin._assisted_decoding
        seam.install()
        assert GenerationMixin._assisted_decoding is wrapped
        seam.uninstall()
        try:
            assert GenerationMixin._assisted_decoding is not wrapped
            assert "eagle_hf" not in GenerationMixin._assisted_decoding.__module__
            seam.uninstall()
        finally:
            seam.install()

    def test_signatures_stay_what_generate_reads(self):
        parameters = inspect.signature(GenerationMixin._assisted_decoding).parameters
        assert {"inputs_tensor", "assistant_model", "tokenizer"} <= set(parameters)

    def test_other_assistants_go_where_they_went(self, target):
        assistant = tiny_target("llama", seed=1)
        assert torch.equal(greedy(target, assistant_model=assistant), greedy(target))

    def test_prompt_lookup_goes_where_it_went(self, target):
        assert torch.equal(greedy(target, prompt_lookup_num_tokens=3), greedy(target))

    def test_an_unknown_transformers_is_an_import_error(self, monkeypatch):
        seam.uninstall()
        try:
            monkeypatch.setattr(GenerationMixin, "_assisted_decoding", lambda self, ids: None)
            with pytest.raises(ImportError, match=rf"transformers {transformers.__version__}.*>=5.17,<5"):
                seam.install()
        finally:
            monkeypatch.undo()
            seam.install()


class TestRefusals:
    def check(self, target, draft, message, **kwargs):
        with pytest.raises(ValueError, match=message):
            target.generate(PROMPT, assistant_model=draft, **{"max_new_tokens": 4} | kwargs)

    def test_vocabulary(self, target):
        self.check(target, random_draft(target, vocab_size=100, draft_vocab_size=100), "vocabulary of 96 .* one of 100")

    def test_hidden_size(self, target):
        draft = random_draft(target, target_hidden_size=64, own_embed_tokens=True)
        self.check(target, draft, "hidden states of size 32, .* features of size 64")

    def test_layers(self, target):
        self.check(target, random_draft(target, feature_layer_ids=[1, 2, 9]), r"\[1, 2, 9\], .* target has 3 layers")
        self.check(tiny_target("llama"), random_draft(target, feature_layer_ids=[1, 3, 4]), "belongs to another target")

    def test_default_layers_of_a_shallow_target(self):
        target = tiny_target("llama")
        target.config.num_hidden_layers = 5
        self.check(target, random_draft(target, feature_layer_ids=None), "not three different layers")

    def test_the_target_it_was_trained_for_is_named(self, target):
        draft = random_draft(target, vocab_size=100, draft_vocab_size=100, base_model_name_or_path="org/other")
        self.check(target, draft, "It was trained for org/other")

    def test_encoder_decoder(self, draft):
        config = T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        self.check(AutoModelForSeq2SeqLM.from_config(config), draft, "decoder-only target, but T5")

    def test_no_cache(self, target, draft):
        self.check(target, draft, "`use_cache=False`, but verifying drafts needs", use_cache=False)

    @pytest.mark.parametrize("implementation", ["sliding_window"])
    def test_caches_that_cannot_drop_nodes(self, target, draft, implementation):
        self.check(
            target, draft, f"`cache_implementation='{implementation}'`.*dynamic", cache_implementation=implementation
        )

    def test_passed_caches_that_cannot_drop_nodes(self, draft):
        sliding = tiny_target("mistral-sliding")
        cache = transformers.StaticCache(config=sliding.config, max_cache_len=64)
        long = {"max_new_tokens": 12}  # longer than the window
        self.check(sliding, draft, "a static cache with sliding-window layers", **{CACHE: cache}, **long)
        self.check(sliding, draft, "a static cache with sliding-window layers", cache_implementation="static", **long)
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        with pytest.raises(ValueError, match="EncoderDecoderCache"):
            eagle_hf.generation.pairing.check_cache(cache)

    def test_misspelt_draft_options(self, target, draft):
        draft.generation_config.draft_widht = 3
        self.check(target, draft, "unknown draft options")

    def test_nothing_ran_before(self, target, draft, monkeypatch):
        monkeypatch.setattr(type(target), "forward", lambda *args, **kwargs: pytest.fail("ran"))
        self.check(target, draft, "use_cache", use_cache=False)

    @pytest.mark.parametrize("name", ["org/head", Path("folder/of/head")], ids=str)
    def test_a_name_in_the_place_of_the_head(self, target, name):
        for call in (lambda: greedy(target, assistant_model=name), lambda: eagle_hf.attach(target, name)):
            with pytest.raises(ValueError, match=f"from_pretrained.'{name}'"):
                call()
        assert "generate" not in vars(target)

    def test_a_draft_without_weights(self, target, draft):
        self.check(target, draft.to("meta"), "weights of the draft are on the meta device")


class TestAlignment:
    def test_the_draft_follows_the_targets_dtype(self, draft, monkeypatch):
        """As a copy: the head that was passed keeps its own."""
        target, seen = tiny_target("llama", dtype=torch.float64), []
        step = EagleDraftModel.step
        monkeypatch.setattr(
            EagleDraftModel,
            "step",
            lambda self, *args, **kwargs: seen.append(self.dtype) or step(self, *args, **kwargs),
        )
        greedy(target, assistant_model=draft)
        assert set(seen) == {torch.float64}
        assert draft.dtype == TARGET_DTYPE

    def test_unless_it_was_chosen(self, draft):
        target = tiny_target("llama", dtype=torch.float64)
        draft.has_explicit_dtype = True
        assert torch.equal(greedy(target, assistant_model=draft), greedy(target))
        assert draft.dtype == TARGET_DTYPE


class TestEverydayCalls:
    def test_options_of_the_draft_shape_the_tree(self, golden_target):
        draft = golden_draft("A_eagle3")
        forwards = []
        for depth in (2, 6):
            use_options(draft, num_assistant_tokens=10, draft_depth=depth, draft_width=3)
            output = golden_target.generate(
                PROMPT, max_new_tokens=30, do_sample=False, assistant_model=draft, return_dict_in_generate=True
            )
            assert max(output.acceptance_lengths[0]) <= depth + 1
            forwards.append(output.target_forwards)
        assert forwards[1] < forwards[0]

    def test_generation_configs_are_honoured(self, target, draft):
        config = GenerationConfig(max_new_tokens=9, do_sample=False, pad_token_id=0, repetition_penalty=1.5)
        plain = target.generate(PROMPT, generation_config=config)
        assert torch.equal(target.generate(PROMPT, generation_config=config, assistant_model=draft), plain)

    @pytest.mark.parametrize("sampling", [False, True], ids=["beam search", "beam sample"])
    def test_beams_run_without_the_draft_and_say_so(self, target, draft, sampling, caplog):
        texts = []
        for assistant in ({}, {"assistant_model": draft, "draft_tree": "chain"}):
            torch.manual_seed(0)
            options = {"num_beams": 2, "do_sample": sampling, "return_dict_in_generate": True}
            texts.append(target.generate(PROMPT, max_new_tokens=6, **options, **assistant))
        assert torch.equal(texts[0].sequences, texts[1].sequences)
        assert type(texts[0]) is type(texts[1])
        (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("eagle_hf")]
        assert warning.startswith(f"The draft is not used: the call asks for beam s{('earch', 'ample')[sampling]}")

    @pytest.mark.parametrize("texts", ["abc", ["abc", "d", "ef", "ghij"]], ids=["one", "batch"])
    def test_pipelines(self, target, draft, texts):
        tokenizer, options = letter_tokenizer(), {"max_new_tokens": 8, "do_sample": False, "batch_size": 3}
        plain = pipeline("text-generation", target, tokenizer=tokenizer)(texts, **options)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # what a pipeline compares
            setattr(draft.config, name, getattr(target.config, name))
        assert (
            pipeline("text-generation", target, tokenizer=tokenizer, assistant_model=draft)(texts, **options) == plain
        )
        eagle_hf.attach(target, draft)
        try:
            assert pipeline("text-generation", target, tokenizer=tokenizer)(texts, **options) == plain
        finally:
            eagle_hf.detach(target)

    def test_training_mode_and_gradients_are_left_alone(self, target, draft):
        greedy(target, assistant_model=draft)
        assert all(parameter.grad is None for parameter in [*target.parameters(), *draft.parameters()])
        hidden = draft.project_features(torch.randn(1, 3, 96, dtype=draft.dtype))
        draft(hidden, torch.randn(1, 3, 32, dtype=draft.dtype)).logits.sum().backward()
        assert draft.fc.weight.grad is not None

    def test_in_inference_mode(self, target, draft):
        with torch.inference_mode():
            inside = greedy(target, assistant_model=draft)
        assert torch.equal(inside, greedy(target))
        hidden = draft.project_features(torch.randn(1, 3, 96, dtype=draft.dtype))
        draft(hidden, torch.randn(1, 3, 32, dtype=draft.dtype)).logits.sum().backward()  # weights can still be trained

    def test_state_lives_in_the_call(self, target, draft):
        before = set(vars(draft)), {name: tensor.clone() for name, tensor in draft.state_dict().items()}
        greedy(target, assistant_model=draft)
        assert set(vars(draft)) == before[0]
        assert all(torch.equal(tensor, before[1][name]) for name, tensor in draft.state_dict().items())

    def test_a_draft_in_eagle1_form(self, target):
        draft = use_options(random_draft(target, eagle_version=1), num_assistant_tokens=6, draft_width=3)
        assert torch.equal(greedy(target, assistant_model=draft), greedy(target))

    @pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
    def test_every_kind_of_tree(self, target, kind):
        draft = use_options(random_draft(target, draft_vocab_size=40), draft_tree=kind)
        draft.set_draft_vocabulary(torch.arange(40) * 2)
        assert torch.equal(greedy(target, assistant_model=draft), greedy(target))


def test_auto_classes_know_us():
    assert isinstance(transformers.AutoModel.from_config(EagleConfig(
        vocab_size=96, draft_vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4
    )), EagleDraftModel)  # fmt: skip
