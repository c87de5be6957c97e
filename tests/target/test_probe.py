"""The verdict on a target is found by trying: trees, chains only, or nothing."""

import functools

import pytest
import torch
import transformers
from architectures import VOCAB_SIZE, tiny_target
from chain_only import CHAIN_ONLY, build
from doubles import ScriptedChainDrafter, random_draft, scripted
from packaging.version import Version
from promises import left_padded_prompts
from target_dtype import TARGET_DTYPE

from eagle_hf.generation import opening
from eagle_hf.target import masks, prepared, probe
from eagle_hf.target.probe import can_verify_trees
from eagle_hf.versions import CACHE, TRANSFORMERS


@pytest.mark.parametrize("name", CHAIN_ONLY)
class TestChainOnly:
    def test_is_found_out(self, name):
        assert can_verify_trees(build(name, **CHAIN_ONLY[name])) is False

    @pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("lengths", [(9,), (9, 4, 7)], ids=["single", "batch"])
    def test_chains_are_lossless(self, name, do_sample, lengths, monkeypatch):
        target, inputs = build(name, **CHAIN_ONLY[name]), left_padded_prompts(lengths)
        draft = random_draft(target)
        warnings = []
        monkeypatch.setattr(opening.logger, "warning_once", warnings.append)
        outputs = []
        for assistant in (None, draft):
            torch.manual_seed(0)
            outputs.append(
                target.generate(
                    **inputs, max_new_tokens=20, do_sample=do_sample, eos_token_id=None, assistant_model=assistant
                )
            )
        assert torch.equal(*outputs)
        assert len(warnings) == 1
        assert "verifies chains only" in warnings[0]
        draft.generation_config.draft_tree = "chain"  # then there is nothing to warn of
        target.generate(**inputs, max_new_tokens=4, do_sample=False, assistant_model=draft)
        assert len(warnings) == 1

    def test_accepted_chains_are_lossless(self, name, monkeypatch):
        """With a draft that knows the text, chains are accepted and taken back."""
        from doubles import ScriptedDrafter, scripted

        class ScriptedChains(ScriptedDrafter):
            def _shape(self, max_depth):
                return [-1, *range(max_depth)]

        target = build(name, **CHAIN_ONLY[name])
        for lengths in ((9,), (9, 4, 7)):
            inputs = left_padded_prompts(lengths)
            kwargs = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
            plain = target.generate(**inputs, **kwargs)
            truth = plain[:, max(lengths) :].tolist()
            scripted(monkeypatch, lambda truth=truth: ScriptedChainDrafter(truth, seed=1))
            ours = target.generate(
                **inputs, **kwargs, assistant_model=random_draft(target), return_dict_in_generate=True
            )
            assert torch.equal(plain, ours.sequences)
            assert ours.target_forwards < 24


def test_a_target_that_can_do_neither_is_refused_with_the_reasons(monkeypatch):
    target = tiny_target("llama")

    def cannot(*args, **kwargs):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(probe, "forward_tree", cannot)
    monkeypatch.setattr(probe, "forward_chain", cannot)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot verify drafts: .*no such thing.*no such thing"):
        target.generate(torch.tensor([[3, 4]]), assistant_model=random_draft(target), max_new_tokens=4)


def test_a_wrong_mask_is_seen(monkeypatch):
    """The probe must tell a target that ignores the mask: here all nodes see each other."""
    target = tiny_target("llama")
    monkeypatch.setattr(masks.DraftTree, "ancestor_mask", lambda tree: torch.ones(1, 6, 6, dtype=torch.bool).tril())
    assert can_verify_trees(target) is False


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_that_ignores_what_trees_need_is_seen(ignored, dtype, monkeypatch):
    target = tiny_target("llama", dtype=dtype)
    forward = type(target).forward
    monkeypatch.setattr(
        type(target), "forward", lambda self, *args, **kwargs: forward(self, *args, **(kwargs | {ignored: None}))
    )
    monkeypatch.setattr(prepared, "takes_position_ids", lambda model: True)
    assert can_verify_trees(target) is False


def test_a_target_that_verifies_trees_is_asked_two_forwards(monkeypatch):
    """The first call pays for them."""
    target, lengths = tiny_target("llama"), []
    target.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    can_verify_trees(target)
    assert lengths == [(1, 8), (1, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_no_reason_to_refuse(dtype):
    assert can_verify_trees(tiny_target("llama", dtype=dtype)) is True


def test_the_verdict_is_kept_per_attention_implementation(monkeypatch):
    target = tiny_target("llama")
    calls = []
    real = probe._probe
    monkeypatch.setattr(probe, "_probe", lambda *args: calls.append(1) or real(*args))
    can_verify_trees(target)
    can_verify_trees(target)
    assert len(calls) == 1
    target.set_attn_implementation("eager")
    can_verify_trees(target)
    assert len(calls) == 2


def test_the_probe_leaves_no_trace():
    target = tiny_target("llama")
    state, implementation = torch.get_rng_state(), target.config._attn_implementation
    can_verify_trees(target)
    assert torch.equal(state, torch.get_rng_state())
    assert target.config._attn_implementation == implementation


class TestInputsThatTheTargetPrepares:
    """The probe compares with what plain `generate` runs, not with what our forwards would like to pass."""

    @pytest.mark.parametrize("kind", ["Kosmos2", "Kosmos2_5"])
    def test_positions_that_the_target_takes_from_its_tokens(self, kind):
        """It leaves out those of `generate`, counts tokens that are no padding, and begins behind the padding token."""
        text = {"embed_dim": 32, "layers": 4, "ffn_dim": 48, "attention_heads": 4, "dropout": 0.0, "init_std": 0.2}
        text |= {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 128, "pad_token_id": 1}
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision |= {"image_size": 16, "patch_size": 8, "intermediate_size": 48} if kind == "Kosmos2" else {"d_kv": 8}
        config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, latent_query_num=4)
        torch.manual_seed(0)
        target = getattr(transformers, f"{kind}ForConditionalGeneration")(config).to(TARGET_DTYPE).eval()
        target = getattr(target, "text_model", target) if kind == "Kosmos2" else target  # which its `generate` calls
        with pytest.raises(ValueError, match="cannot verify drafts: .*off by"):
            target.generate(input_ids=torch.tensor([[5, 6, 7]]), assistant_model=random_draft(target), max_new_tokens=4)

    @pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("lengths", [(9,), (9, 4, 7)], ids=["single", "batch"])
    def test_positions_that_the_target_counts_by_columns(self, monkeypatch, lengths, do_sample):
        """No tree can be told to it, but chains can."""
        target, inputs = tiny_target("llama"), left_padded_prompts(lengths)
        prepare, forward = target.prepare_inputs_for_generation, target.forward

        def prepare_without_positions(*args, **kwargs):
            return {name: value for name, value in prepare(*args, **kwargs).items() if name != "position_ids"}

        def forward_from_two_on(input_ids, position_ids=None, **kwargs):
            if position_ids is None:
                start = int(kwargs[CACHE].get_seq_length()) if kwargs.get(CACHE) is not None else 0
                position_ids = torch.arange(start + 2, start + 2 + input_ids.shape[1])[None]
            return forward(input_ids=input_ids, position_ids=position_ids, **kwargs)

        target.prepare_inputs_for_generation = prepare_without_positions
        target.forward = functools.wraps(forward)(forward_from_two_on)
        kwargs = {"max_new_tokens": 20, "do_sample": do_sample, "eos_token_id": None}
        torch.manual_seed(0)
        plain = target.generate(**inputs, **kwargs)
        assert can_verify_trees(target) is False
        truth = plain[:, max(lengths) :].tolist()
        scripted(monkeypatch, lambda: ScriptedChainDrafter(truth, seed=1))
        torch.manual_seed(0)
        ours = target.generate(**inputs, **kwargs, assistant_model=random_draft(target), return_dict_in_generate=True)
        assert torch.equal(plain, ours.sequences)
        assert ours.target_forwards < 20


class TestTrainingMode:
    def test_dropout(self):
        target = tiny_target("gpt2-learned-positions").train()  # its dropout is 0.1
        with pytest.raises(ValueError, match=r"cannot verify drafts.*in training mode.*`model.eval\(\)`"):
            generate(target)
        assert generate(target.eval()).shape == (1, 7)

    @pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2-learned-positions"])
    def test_gradient_checkpointing(self, name):
        """Which leaves the cache empty, before 5.24 also where no gradients are taken."""
        target = tiny_target(name)
        plain = generate(target)
        # Called so in newer versions, where the other name warns.
        kind = "activation" if hasattr(target, "activation_checkpointing_disable") else "gradient"
        getattr(target, f"{kind}_checkpointing_enable")()
        target.train()
        for module in target.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        try:
            ours = generate(target)  # a verdict of the target in evaluation mode is known
        except ValueError as error:
            reason = str(error)
        else:
            reason = ""
            assert torch.equal(ours, plain)
        if Version("5.24") > TRANSFORMERS:
            assert f"`model.eval()` or `model.{kind}_checkpointing_disable()`" in reason
        getattr(target, f"{kind}_checkpointing_disable")()
        assert torch.equal(generate(target), plain)  # in training mode, without dropout


def generate(target):
    draft = random_draft(target)
    return target.generate(torch.tensor([[5, 6, 7]]), assistant_model=draft, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("change", ["train", "adapter", "dtype", "another layer", "static"])
def test_the_verdict_does_not_outlive_what_it_was_about(monkeypatch, change):
    target, calls = tiny_target("llama"), []
    real = probe._probe
    monkeypatch.setattr(probe, "_probe", lambda *args: calls.append(1) or real(*args))
    can_verify_trees(target)
    if change == "train":
        target.train()
    elif change == "adapter":  # as PEFT puts them in the place of a layer
        target.model.layers[0].mlp.up_proj = torch.nn.Sequential(target.model.layers[0].mlp.up_proj)
    elif change == "dtype":
        target.to(torch.float16)
    elif change == "another layer":
        target.model.layers = target.model.layers[:2]
    can_verify_trees(target, is_static=change == "static")
    assert len(calls) == 2
    can_verify_trees(target, is_static=change == "static")
    assert len(calls) == 2
