"""One loader for whatever a target is: the class that was saved, adapters, GGUF, and errors that name the cause."""

import json
import shutil

import pytest
import torch
from architectures import ARCHITECTURES, tiny_target
from conftest import GOLDEN
from doubles import letter_tokenizer, random_draft
from multimodal_targets import FAMILIES, multimodal_target
from packaging.version import Version
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from eagle_hf import EagleDraftModel
from eagle_hf.loading import load_processor, load_target, load_tokenizer
from eagle_hf.loading.dtypes import parse_dtype
from eagle_hf.loading.targets import _auto_class
from eagle_hf.versions import TRANSFORMERS


FORMATS = GOLDEN.parent / "formats"
PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def close(logits, others):
    """Whether logits are equal up to rounding, which is coarse with targets in half precision."""
    return torch.allclose(logits, others, rtol=0, atol=4 * torch.finfo(logits.dtype).eps * others.abs().max().item())


@pytest.fixture
def llama(tmp_path):
    tiny_target("llama").save_pretrained(tmp_path / "llama")
    letter_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def save_adapter(folder, base_folder, base=None, **changes):
    """A LoRA adapter that changes a lot, for the base in a folder; returns what PEFT makes of it."""
    model = get_peft_model(
        base or AutoModelForCausalLM.from_pretrained(base_folder),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base_folder)} | changes))
    return model.eval()


class TestDtypes:
    @pytest.mark.parametrize(
        ("dtype", "names"),
        [
            (torch.float16, ["fp16", "half", "float16", "torch.float16", "FP16", "f16", "16", "fp-16", torch.float16]),
            (torch.bfloat16, ["bf16", "bfloat16", "torch.bfloat16", "BFloat16", "bf-16"]),
            (torch.float32, ["fp32", "float", "float32", "torch.float", "single", "32", " f32 "]),
            (torch.float64, ["double", "float64", "fp64"]),
            ("auto", ["auto", "Auto", None]),
        ],
    )
    def test_every_spelling_means_its_dtype(self, dtype, names):
        for name in names:
            assert parse_dtype(name) == dtype

    @pytest.mark.parametrize(
        ("name", "said"),
        [("bfloat61", "bfloat16"), ("flaot32", "float32"), ("bp16", "bf16"), ("int8", "quantise"), ("fp8", "quantise"),
         ("nf4", "quantise"), ("torch.int64", "Known: auto"), (torch.int32, "Known: auto"), ("", "Known: auto")],
    )  # fmt: skip
    def test_others_are_refused_with_what_was_meant(self, name, said):
        with pytest.raises(ValueError, match=said):
            parse_dtype(name)


class TestClasses:
    @pytest.mark.parametrize(
        "name", ["qwen2_vl", *(pytest.param(name, marks=pytest.mark.sweep) for name in FAMILIES if name != "qwen2_vl")]
    )
    def test_a_multimodal_target_is_loaded_as_it_was_saved(self, tmp_path, name):
        saved = multimodal_target(name)
        saved.save_pretrained(tmp_path)
        loaded = load_target(tmp_path)
        assert type(loaded) is type(saved)
        assert same_weights(loaded, saved)
        assert not loaded.training

    @pytest.mark.parametrize(
        "name", ["llama-tied", *(pytest.param(n, marks=pytest.mark.sweep) for n in ARCHITECTURES if n != "llama-tied")]
    )
    def test_a_text_target_is_loaded_as_transformers_loads_it(self, tmp_path, name):
        saved = tiny_target(name, dtype=torch.bfloat16)
        saved.save_pretrained(tmp_path)
        loaded = load_target(tmp_path)
        assert type(loaded) is type(saved)
        assert loaded.dtype == torch.bfloat16
        assert load_target(tmp_path, dtype="fp32").dtype == torch.float32
        assert same_weights(loaded, AutoModelForCausalLM.from_pretrained(tmp_path))

    @pytest.mark.parametrize("name", ["emu3", "gemma3", "llama4", "mllama", "qwen3_5"])
    def test_where_two_classes_fit_the_saved_one_is_taken(self, name):
        """Each loads weights that the other leaves out or renames."""
        config = AutoConfig.for_model(name)
        text, images = (
            auto._model_mapping[type(config)] for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
        )
        for saved in (text, images):
            config.architectures = [saved.__name__]
            auto_class = _auto_class("here", config, trust_remote_code=False)
            assert auto_class._model_mapping[type(config)] is saved
        config.architectures = None
        assert _auto_class("here", config, trust_remote_code=False) is AutoModelForImageTextToText

    def test_a_target_that_hears_has_a_class(self):
        config = AutoConfig.for_model("qwen2_audio")
        assert _auto_class("here", config, trust_remote_code=False) is AutoModelForMultimodalLM

    def test_options_reach_transformers(self, llama):
        options = {"device_map": {"": "cpu"}, "max_memory": {"cpu": "1GiB"}, "revision": None, "token": None}
        assert load_target(llama, attn_implementation="eager", **options).config._attn_implementation == "eager"

    def test_an_offloaded_target_drafts_exactly(self, tmp_path, llama):
        places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu",
                  "model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
                  "lm_head": "cpu"}  # fmt: skip
        target = load_target(llama, device_map=places, offload_folder=tmp_path / "offloaded")
        assert target.hf_device_map["model.layers.0"] == "disk"
        settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(PROMPT)}
        drafted = target.generate(PROMPT, assistant_model=random_draft(target), **settings)
        assert torch.equal(drafted, load_target(llama).generate(PROMPT, **settings))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what PEFT asks
class TestAdapters:
    def test_the_base_is_loaded_with_its_adapter(self, tmp_path, llama):
        adapted = save_adapter(tmp_path / "adapter", llama)
        loaded = load_target(tmp_path / "adapter")
        with torch.no_grad():
            logits = loaded(PROMPT).logits
            assert close(logits, adapted(PROMPT).logits)
            assert not close(logits, load_target(llama)(PROMPT).logits)
        assert load_tokenizer(tmp_path / "adapter").vocab_size == letter_tokenizer().vocab_size

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
            LoraConfig(target_modules=["embed_tokens", "o_proj"], init_lora_weights=False),
            LoraConfig(target_modules=["v_proj"], use_dora=True, init_lora_weights=False),
            IA3Config(
                target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
            ),
        ],
        ids=["saved modules", "embedding", "DoRA", "IA3"],
    )
    def test_other_kinds_of_adapters(self, tmp_path, llama, config):
        if config.modules_to_save and Version("5.20") > TRANSFORMERS:
            pytest.skip("this transformers does not load saved modules; that is refused, as below")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name or "ia3" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            model.save_pretrained(tmp_path / "adapter")
            logits = load_target(tmp_path / "adapter")(PROMPT).logits
            assert close(logits, model(PROMPT).logits)
            assert not close(logits, load_target(llama)(PROMPT).logits)

    def test_weights_of_an_adapter_that_have_no_place_are_refused(self, tmp_path, llama):
        save_adapter(tmp_path / "adapter", llama, target_modules=["q_proj"])  # those of down_proj are there as well
        with pytest.raises(OSError, match="do not fit what its adapter_config.json says"):
            load_target(tmp_path / "adapter")

    def test_an_adapter_of_a_multimodal_target(self, tmp_path):
        base = multimodal_target("qwen2_vl")
        base.save_pretrained(tmp_path / "base")
        adapted = save_adapter(tmp_path / "adapter", tmp_path / "base", base)
        with torch.no_grad():
            assert close(load_target(tmp_path / "adapter")(PROMPT).logits, adapted(PROMPT).logits)

    def test_a_base_beside_its_adapter_and_a_tokenizer_of_the_adapter(self, tmp_path, llama):
        save_adapter(tmp_path / "adapter", llama, base_model_name_or_path="../llama")
        tokenizer = letter_tokenizer()
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(tmp_path / "adapter")
        assert load_target(tmp_path / "adapter").peft_config
        assert "<new>" in load_tokenizer(tmp_path / "adapter").get_vocab()

    def test_drafts_with_an_adapter_are_exact(self, tmp_path, llama):
        save_adapter(tmp_path / "adapter", llama)
        target = load_target(tmp_path / "adapter")
        settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(PROMPT)}
        drafted = target.generate(PROMPT, assistant_model=random_draft(target), **settings)
        assert torch.equal(drafted, target.generate(PROMPT, **settings))

    @pytest.mark.parametrize(
        ("changes", "error", "said"),
        [
            ({"base_model_name_or_path": None}, OSError, "does not name its `base_model_name_or_path`"),
            ({"base_model_name_or_path": "/not/there"}, OSError, "adapter for /not/there, which cannot be loaded"),
            ({"peft_type": "PREFIX_TUNING"}, ValueError, "PREFIX_TUNING"),
        ],
    )
    def test_what_is_wrong_with_an_adapter_is_said(self, tmp_path, llama, changes, error, said):
        save_adapter(tmp_path / "adapter", llama, **changes)
        with pytest.raises(error, match=said):
            load_target(tmp_path / "adapter")

    def test_prompt_tuning_is_refused(self, tmp_path, llama):
        base = AutoModelForCausalLM.from_pretrained(llama)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
        with pytest.raises(ValueError, match="PROMPT_TUNING"):
            load_target(tmp_path / "adapter")

    def test_without_peft_the_package_is_named(self, tmp_path, llama, monkeypatch):
        save_adapter(tmp_path / "adapter", llama)
        monkeypatch.setattr("eagle_hf.loading.targets.is_peft_available", lambda: False)
        for load in (load_target, load_tokenizer, load_processor):
            with pytest.raises(ModuleNotFoundError, match=r"eagle-hf\[peft\]"):
                load(tmp_path / "adapter")
        assert load_target(llama)  # needs none


class TestRefusals:
    @pytest.mark.parametrize(
        "head", [GOLDEN / "drafts" / "A_eagle3", *sorted(path for path in FORMATS.iterdir() if path.is_dir())],
        ids=lambda path: path.name,
    )  # fmt: skip
    def test_a_head_in_the_place_of_a_target_is_called_a_head(self, tmp_path, head):
        if (FORMATS / head.name).is_dir() and not list(head.glob("*.safetensors")) + list(head.glob("*.bin")):
            pytest.skip("a configuration without weights")
        with pytest.raises(OSError, match=r"is an EAGLE head.*[Ss]wap --target and --draft"):
            load_target(head)

    def test_an_own_head_likewise(self, tmp_path):
        random_draft(tiny_target("llama")).save_pretrained(tmp_path)
        with pytest.raises(OSError, match="is an EAGLE head"):
            load_target(tmp_path)

    def test_a_target_in_the_place_of_a_head_is_called_a_model(self, llama):
        with pytest.raises(ValueError, match="is a whole language model"):
            EagleDraftModel.from_pretrained(llama)

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (lambda: T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, vocab_size=9)),
             "encoder-decoder"),
            (lambda: BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)), "bert"),
            (lambda: LlamaForSequenceClassification(tiny_target("llama").config), "ForSequenceClassification"),
        ],
        ids=["t5", "bert", "llama that scores"],
    )  # fmt: skip
    def test_what_is_no_decoder_is_named_in_a_line(self, tmp_path, model, said):
        model().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=said) as error:
            load_target(tmp_path)
        assert len(str(error.value)) < 500  # not a page of class names

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"model_type": "nonesuch"}, "does not know"),
            ({"model_type": None}, "has no `model_type`"),
            ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "trust_remote_code"),
        ],
    )
    def test_an_unknown_type_is_named_in_a_line(self, llama, changes, said):
        config = json.loads((llama / "config.json").read_text()) | changes
        (llama / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        (llama / "mine.py").write_text("raise SystemExit('code of a stranger runs')")
        with pytest.raises(ValueError, match=said) as error:
            load_target(llama)
        assert len(str(error.value)) < 500

    @pytest.mark.parametrize("lost", ["layers.1.", "lm_head", "embed_tokens"])
    def test_weights_that_would_be_random_are_refused(self, tmp_path, lost):
        target = tiny_target("llama")
        state = {name: tensor for name, tensor in target.state_dict().items() if lost not in name}
        target.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(OSError, match=r"lack \d+ tensors"):
            load_target(tmp_path)

    def test_a_folder_without_a_model_says_what_it_holds(self, tmp_path, llama):
        (tmp_path / "empty").mkdir()
        with pytest.raises(OSError, match=r"no config.json.*It is empty"):
            load_target(tmp_path / "empty")
        with pytest.raises(OSError, match=r"no config.json.*in its folder .*llama"):
            load_target(tmp_path)
        (tmp_path / "empty" / "model-q4.gguf").write_bytes(b"")
        with pytest.raises(OSError, match=r"--gguf_file.*model-q4.gguf"):
            load_target(tmp_path / "empty")
        (llama / "config.json").write_text("{")
        with pytest.raises(OSError, match="is not valid JSON"):
            load_target(llama)

    def test_a_folder_that_is_not_there(self, tmp_path):
        for load in (load_target, load_tokenizer, load_processor):
            with pytest.raises(FileNotFoundError, match="There is no folder"):
                load(tmp_path / "nothing")

    def test_gguf_without_the_package_names_it(self, tmp_path, llama, monkeypatch):
        monkeypatch.setattr("eagle_hf.loading.targets.is_gguf_available", lambda: False)
        (llama / "model.gguf").write_bytes(b"")
        for options in ({"target": llama, "gguf_file": "model.gguf"}, {"target": llama / "model.gguf"}):
            for load in (load_target, load_tokenizer):
                with pytest.raises(ModuleNotFoundError, match=r"eagle-hf\[gguf\]"):
                    load(**options)

    @pytest.mark.parametrize(
        ("name", "error", "said"),
        [
            ("bnb-4bits", ValueError, "Did you mean 'bnb-4bit'"),
            ("bnb-8bit", ValueError, "rounds activations"),
            ("quanto-int8", ModuleNotFoundError, "pip install optimum-quanto"),
            ("bnb-4bit", ModuleNotFoundError, "pip install bitsandbytes"),
        ],
    )
    def test_quantisations_are_refused_by_name(self, llama, monkeypatch, name, error, said):
        monkeypatch.setattr("eagle_hf.loading.quantization._is_installed", lambda module: False)
        with pytest.raises(error, match=said):
            load_target(llama, quantization=name)

    def test_a_target_that_is_quantised_already_is_named(self, llama):
        config = json.loads((llama / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "awq", "bits": 4}
        (llama / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="is quantised already: awq with 4 bits"):
            load_target(llama, quantization="bnb-4bit")
        with pytest.raises(ImportError, match=r"is quantised \(awq with 4 bits\)"):
            load_target(llama)


def test_the_chat_template_of_an_older_processor_is_found(llama):
    (llama / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    assert load_tokenizer(llama).chat_template == "{{ messages[0].content }}!"
    shutil.copy(llama / "chat_template.json", llama / "unused.json")
    (llama / "chat_template.json").unlink()
    assert load_tokenizer(llama).chat_template is None
