"""The border between target and head: every pair of dtypes, devices and placements drafts, and the text stays."""

import ast
import copy
import itertools
from pathlib import Path

import accelerate
import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from pretended_devices import MixedDevices, device_of, pretended_gpus, put, spread

import eagle_hf
from eagle_hf.target import modules as target_modules
from eagle_hf.target import probe
from eagle_hf.target.modules import embedding_rows, input_device, lent_embedding, lent_lm_head, lm_head_rows


SOURCES = sorted((Path(__file__).parents[2] / "src" / "eagle_hf").rglob("*.py"))
PROMPTS = torch.tensor([[5, 17, 40, 8, 33, 71], [9, 61, 3, 27, 80, 12]])
HEADS = {"eagle-3": {}, "eagle-1": {"eagle_version": 1}, "no lm_head": {"draft_vocab_size": None}}
CPU = torch.device("cpu")


def small_draft(target, **config):
    return use_options(random_draft(target, **config), num_assistant_tokens=6, draft_depth=3, draft_width=2)


def generate(target, draft=None, prompts=PROMPTS, **options):
    torch.manual_seed(7)
    options = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, "do_sample": False} | options
    mask = torch.ones_like(prompts)
    return target.generate(prompts, attention_mask=mask, assistant_model=draft, return_dict_in_generate=True, **options)


def test_nothing_else_touches_the_targets_embedding_and_lm_head():
    """Nor does anything read their weights, whoever holds them."""
    names = {"get_input_embeddings", "get_output_embeddings"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or path.parts[-2:] == ("target", "modules.py"):
                continue
            assert node.attr not in names, f"{path}:{node.lineno}"
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if node.attr == "weight" and owner in ("lm_head", "embed_tokens", "embedding", "embeddings"):
                holder = ast.unparse(node.value).split(".")[0]
                assert holder in ("self", "draft", "head", "cut"), f"{path}:{node.lineno}"  # a head's own


class TestSpreadTargets:
    """Over two devices: the embedding on the first, the final norm and mostly the `lm_head` on the second."""

    @staticmethod
    def run(head, lm_head="cuda:1", place=None, **options):
        target = tiny_target("llama")
        draft = small_draft(target, **head)
        plain = generate(target, **options)
        probe._VERDICTS.clear()
        with pretended_gpus():
            spread(target, lm_head)
            if place is not None:
                assert draft.to(place).device == torch.device(place)
                draft.has_explicit_device = True  # as `from_pretrained` notes with a `device_map`
            prompts = PROMPTS[: options.pop("batch", 2)].clone()
            output = generate(target, draft, put(prompts, "cuda:0"), **options)
            assert isinstance(output, eagle_hf.EagleGenerateOutput)
            assert device_of(output.sequences) == "cuda:0"
        return plain.sequences, output.sequences.clone()

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
    def test_every_head(self, head, sample):
        assert torch.equal(*self.run(HEADS[head], do_sample=sample))

    @pytest.mark.parametrize("ids", [[3, 1, 2], [1, 2, 3]], ids=["first", "last"])
    def test_features_of_the_last_layer_before_the_norm(self, ids):
        """Read by a hook, and on the second device: as the first state, and behind others."""
        assert torch.equal(*self.run({"feature_layer_ids": ids}))
        assert torch.equal(*self.run({"eagle_version": 1, "feature_layer_ids": [3]}))

    @pytest.mark.parametrize("place", ["cuda:1", "cpu"])
    @pytest.mark.parametrize("head", HEADS)
    def test_a_head_elsewhere_than_the_embedding(self, head, place):
        assert torch.equal(*self.run(HEADS[head], place=place, do_sample=True))

    def test_lm_head_on_the_first_device(self):
        assert torch.equal(*self.run(HEADS["eagle-1"], lm_head="cuda:0"))

    def test_mixed_devices_are_found(self, monkeypatch):
        """Without the border."""
        monkeypatch.setattr(target_modules.LentModule, "forward", lambda self, inputs: self.module(inputs))
        with pytest.raises(MixedDevices):
            self.run(HEADS["eagle-1"])


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


USUAL = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.float16)]
PAIRS = [
    pytest.param(*pair, marks=() if pair in USUAL else pytest.mark.sweep, id="-".join(map(str, pair)))
    for pair in itertools.product(DTYPES, repeat=2)
]


@pytest.mark.parametrize(("of_target", "of_head"), PAIRS)
def test_every_pair_of_dtypes(of_target, of_head):
    """A head that was given a dtype of its own keeps it."""
    target = tiny_target("llama").to(of_target)
    plain = generate(target, max_new_tokens=8)
    for config in HEADS.values():
        draft = small_draft(target, **config).to(of_head)
        draft.has_explicit_dtype = True  # as `from_pretrained` notes with a `dtype`
        output = generate(target, draft, max_new_tokens=8)
        assert output.draft_forwards > 0
        assert draft.dtype == of_head
        if of_target == torch.float32:  # in lower precision texts part at near ties
            assert torch.equal(output.sequences, plain.sequences)


def offloaded(kind, target, folder):
    if kind == "cpu_offload":
        return accelerate.cpu_offload(target, execution_device=CPU)
    if kind == "disk_offload":
        return accelerate.disk_offload(target, str(folder), execution_device=CPU)
    device_map = {"model.embed_tokens": kind, "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map["lm_head"] = kind
    return accelerate.dispatch_model(target, device_map, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload", "disk"])
def test_offloaded_targets(kind, tmp_path):
    plain = generate(tiny_target("llama"))
    target = offloaded(kind, tiny_target("llama"), tmp_path)
    assert input_device(target) == CPU
    assert any(parameter.is_meta for parameter in target.parameters())
    for config in HEADS.values():
        assert torch.equal(generate(target, small_draft(tiny_target("llama"), **config)).sequences, plain.sequences)


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "phi", "gpt2-learned-positions"])
def test_rows_are_what_the_modules_compute(name, tmp_path):
    """Also of modules with a bias (Phi) or a factor (Gemma 3), and of offloaded ones."""
    target = tiny_target(name)
    states, ids = torch.randn(3, 32, dtype=target.dtype), torch.arange(96)[None]
    rows, embeddings = lm_head_rows(target), embedding_rows(target, 96)
    bias = getattr(target.get_output_embeddings(), "bias", None)
    expected = target.get_output_embeddings()(states)
    torch.testing.assert_close(states @ rows.T + (0 if bias is None else bias), expected)
    assert torch.equal(embeddings, target.get_input_embeddings()(ids)[0])
    if bias is None:
        assert torch.equal(rows, target.get_output_embeddings().weight)
    moved = offloaded("cpu_offload", copy.deepcopy(target), tmp_path)
    assert torch.equal(lm_head_rows(moved), rows)
    assert torch.equal(embedding_rows(moved, 96), embeddings)


def test_a_lent_module_converts_both_ways():
    target = tiny_target("llama").to(torch.float16)
    embedding, lm_head = lent_embedding(target, CPU, torch.bfloat16), lent_lm_head(target, CPU)
    assert embedding(PROMPTS).dtype == torch.bfloat16
    state = torch.randn(1, 32, requires_grad=True)
    logits = lm_head(state)
    assert logits.dtype == torch.float16
    logits.sum().backward()
    assert state.grad.dtype == torch.float32


def test_weights_that_are_packed_say_nothing_of_what_a_layer_takes():
    """As those of bitsandbytes, which are numbers of eight bits."""

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)

        def forward(self, states):
            assert states.dtype == torch.bfloat16
            return states

    target = tiny_target("llama").to(torch.bfloat16)
    target.lm_head = Packed()
    assert lent_lm_head(target, CPU)(torch.zeros(1, 32)).dtype == torch.bfloat16
