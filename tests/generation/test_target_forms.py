"""
Targets in every form: with adapters, quantised, offloaded, split over processes, compiled. The text is that of plain
`generate` with the same target.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from processes import start
from promises import PROMPT_LENGTHS, left_padded_prompts, with_and_without_draft
from transformers import AutoModelForCausalLM

import eagle_hf


INPUTS = left_padded_prompts(PROMPT_LENGTHS)
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 10}
SAMPLED = {"do_sample": True, "top_k": 20, "eos_token_id": None, "max_new_tokens": 24}


@functools.cache
def plain_text():
    return tiny_target("llama").generate(**INPUTS, **GREEDY)


def small_draft(**config):
    """A head of the tiny target; an EAGLE-1 head uses the target's embedding and `lm_head`."""
    return use_options(
        random_draft(tiny_target("llama"), **config), num_assistant_tokens=6, draft_depth=3, draft_width=2
    )


def assert_lossless(monkeypatch, target):
    """Greedy with real heads, which call the target's own modules, and seed for seed with accepted drafts."""
    plain = target.generate(**INPUTS, **GREEDY)
    for head in ({}, {"eagle_version": 1}):
        output = target.generate(**INPUTS, **GREEDY, assistant_model=small_draft(**head), return_dict_in_generate=True)
        assert isinstance(output, eagle_hf.EagleGenerateOutput)
        assert torch.equal(output.sequences, plain)
    with monkeypatch.context() as context:
        plain, ours, *states = with_and_without_draft(context, target, INPUTS, draft=small_draft(), **SAMPLED)
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(*states)
    assert ours.target_forwards < 20


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what PEFT asks
class TestAdapters:
    @pytest.fixture
    def peft(self):
        return pytest.importorskip("peft")

    @staticmethod
    def wrap(peft, **config):
        settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "r": 4} | config
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return peft.get_peft_model(tiny_target("llama"), peft.LoraConfig(**settings), adapter_name="first").eval()

    def test_an_active_adapter(self, peft, monkeypatch):
        target = self.wrap(peft)
        assert_lossless(monkeypatch, target)
        assert not torch.equal(target.generate(**INPUTS, **GREEDY), plain_text())

    def test_switching_and_disabling_adapters(self, peft):
        """What was found out about the target with one adapter holds for the others."""
        target, draft = self.wrap(peft), small_draft()
        target.add_adapter("second", peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
        target.eval()
        texts = []
        for adapter in ("first", "second"):
            target.set_adapter(adapter)
            texts.append(target.generate(**INPUTS, **GREEDY))
            assert torch.equal(target.generate(**INPUTS, **GREEDY, assistant_model=draft), texts[-1])
        assert not torch.equal(*texts)
        with target.disable_adapter():
            assert torch.equal(target.generate(**INPUTS, **GREEDY, assistant_model=draft), plain_text())

    def test_merging_loading_and_taking_adapters_away_between_calls(self, peft):
        """With heads that use the target's `lm_head`, to which the adapters belong as well."""
        target = tiny_target("llama")
        drafts = [small_draft(eagle_version=1), small_draft(draft_vocab_size=None)]
        texts = []

        def compare(target):
            plain = target.generate(**INPUTS, **GREEDY)
            for draft in drafts:
                assert torch.equal(target.generate(**INPUTS, **GREEDY, assistant_model=draft), plain)
            texts.append(tuple(plain.flatten().tolist()))

        compare(target)
        modules = ["q_proj", "up_proj", "embed_tokens", "lm_head"]
        settings = peft.LoraConfig(target_modules=modules, init_lora_weights=False, r=4)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            adapted = peft.get_peft_model(target, settings).eval()
            compare(adapted)
            adapted.merge_adapter()
            compare(adapted)
            adapted.unmerge_adapter()
            adapted.add_adapter("second", settings)
            adapted.eval().set_adapter("second")
            compare(adapted)
            adapted.delete_adapter("second")
            adapted.set_adapter("default")
            compare(adapted)
        compare(adapted.merge_and_unload())
        assert len({texts[0], texts[1], texts[3]}) == 3

    def test_adapters_on_the_embedding_and_the_head(self, peft, monkeypatch):
        """An EAGLE-1 head drafts with the target's `lm_head` and embedding as they are, adapters included."""
        assert_lossless(monkeypatch, self.wrap(peft, target_modules=["q_proj", "embed_tokens", "lm_head"]))
        assert_lossless(monkeypatch, self.wrap(peft, modules_to_save=["embed_tokens", "lm_head"]))

    def test_adapters_that_the_target_itself_has_loaded(self, peft, monkeypatch):
        """transformers 5.24 asks for a PEFT that is not released yet; nothing else of it is in the way."""
        monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)
        target = tiny_target("llama")
        target.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        assert_lossless(monkeypatch, target.eval())

    def test_another_adapter_for_every_row(self, peft):
        target, draft = self.wrap(peft), small_draft()
        target.add_adapter("second", peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
        target.eval()
        kwargs = INPUTS | GREEDY | {"adapter_names": ["first", "second", "__base__", "first"]}
        plain = target.generate(**kwargs)
        assert torch.equal(target.generate(**kwargs, assistant_model=draft), plain)
        assert torch.equal(plain[2], plain_text()[2])

    def test_attaching(self, peft):
        target = self.wrap(peft)
        plain = target.generate(**INPUTS, **GREEDY)
        eagle_hf.attach(target, small_draft())
        try:
            output = target.generate(**INPUTS, **GREEDY, return_dict_in_generate=True)
        finally:
            eagle_hf.detach(target)
        assert isinstance(output, eagle_hf.EagleGenerateOutput)
        assert torch.equal(output.sequences, plain)


def test_int8_weights(monkeypatch):
    quantization = pytest.importorskip("torchao.quantization")
    target = tiny_target("llama")
    exact = target(**INPUTS).logits
    quantization.quantize_(target, quantization.Int8WeightOnlyConfig())
    assert "Int8" in type(target.lm_head.weight).__name__ or "Affine" in type(target.lm_head.weight).__name__
    assert not torch.equal(target(**INPUTS).logits, exact)
    assert_lossless(monkeypatch, target)


DEVICE_MAPS = {
    "layers-on-disk": {"model.layers.1": "disk", "model.layers.2": "disk"},
    "head-on-disk": {"lm_head": "disk"},
    "embedding-and-head-on-disk": {"model.embed_tokens": "disk", "lm_head": "disk"},
}


@pytest.mark.parametrize("name", [*DEVICE_MAPS, "all-on-disk"])
def test_weights_offloaded_to_the_disk(monkeypatch, tmp_path, name):
    modules = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm",
               "model.rotary_emb", "lm_head")  # fmt: skip
    device_map = dict.fromkeys(modules, "cpu") | DEVICE_MAPS[name] if name in DEVICE_MAPS else {"": "disk"}
    tiny_target("llama").save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(
        tmp_path / "target", device_map=device_map, offload_folder=tmp_path / "offloaded"
    ).eval()
    target.generation_config.pad_token_id = 0
    assert "meta" in {parameter.device.type for parameter in target.parameters()}
    draft = small_draft()
    assert_lossless(monkeypatch, target)
    assert torch.equal(target.generate(**INPUTS, **GREEDY, assistant_model=draft), plain_text())
    assert draft.device.type == "cpu"


def test_weights_that_were_never_loaded_are_refused():
    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(tiny_target("llama").config)
    draft = small_draft()
    with pytest.raises(ValueError, match="weights of LlamaForCausalLM are on the meta device"):
        target.generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=3)
    assert draft.device.type == "cpu"


def test_a_target_whose_forward_was_compiled():
    inputs, kwargs = left_padded_prompts((5,)), GREEDY | {"max_new_tokens": 4}
    target = tiny_target("llama")
    with torch._dynamo.config.patch(recompile_limit=2):  # further shapes run as they are: compiling takes seconds
        target.forward = torch.compile(target.forward, backend="eager", dynamic=True)
        plain = target.generate(**inputs, **kwargs)
        ours = target.generate(**inputs, **kwargs, assistant_model=small_draft())
    torch._dynamo.reset()
    assert torch.equal(plain, ours)


def test_a_compiled_target_and_a_compiled_draft():
    """`torch.compile(model)` hands `generate` on to the model inside, and so it is with a head."""
    target = torch.compile(tiny_target("llama"), backend="eager")
    output = target.generate(
        **INPUTS, **GREEDY, assistant_model=torch.compile(small_draft(), backend="eager"), return_dict_in_generate=True
    )
    assert isinstance(output, eagle_hf.EagleGenerateOutput)
    assert torch.equal(output.sequences, plain_text())


def test_a_target_split_over_two_processes(tmp_path):
    """Tensor parallelism on the CPU: half of the heads and of the MLP in each process."""
    tiny_target("llama").save_pretrained(tmp_path / "target")
    script = Path(__file__).parent / "run_tensor_parallel.py"
    start([str(script), str(tmp_path / "target"), str(tmp_path / "result")], world_size=2)
    for rank in range(2):
        result = json.loads((tmp_path / f"result.{rank}").read_text())
        assert result["world_size"] == 2
        assert result["local_rows"] == 16  # of 32
        greedy, sampled = result["texts"][:3], result["texts"][3:]
        assert greedy[0] == greedy[1] == greedy[2]
        assert sampled[0] == sampled[1] == sampled[2]
        assert greedy[0] != sampled[0]
