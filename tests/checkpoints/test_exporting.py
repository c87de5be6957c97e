"""From any layout to any other and back: the head stays the same, bit by bit, or the way is refused."""

import json

import pytest
import torch
from doubles import random_draft
from layouts import SAMPLES, random_inputs, tiny_llama

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint
from eagle_hf.checkpoints.exporting import LAYOUTS
from eagle_hf.cli.main import main
from eagle_hf.hub_names import is_hub_id


NAMES = sorted(path.name for path in SAMPLES.iterdir() if path.is_dir())
SGLANG_REFUSES = {"speculators-0.9-eagle3-llama", "speculators-0.9-eagle3.1-llama-norm_before_fc-norm_output"}
# What each engine can run of the samples; all else is refused.
POSSIBLE = {
    "safeailab": {name for name in NAMES if name.startswith("safeailab")}
    | {"specforge-eagle3-sglang", "angelslim-eagle3"},
    "speculators": {name for name in NAMES if not name.startswith(("safeailab-eagle1", "kimi"))},
    "vllm": set(NAMES) - {"safeailab-eagle1-vicuna"},  # which has a bias on `fc`
    "sglang": set(NAMES) - SGLANG_REFUSES,
    "modelopt": {
        "modelopt-eagle3-llama", "specforge-eagle3-sglang", "angelslim-eagle3", "safeailab-eagle3-llama3",
    },
    "llama.cpp": {
        "modelopt-eagle3-llama", "specforge-eagle3-sglang", "angelslim-eagle3", "safeailab-eagle3-llama3",
        "safeailab-eagle3-target_hidden_size", "speculators-0.9-eagle3-llama", "nvidia-gptoss-v3-norm_before_fc",
    },
}  # fmt: skip


def same_head(first, second):
    """Whether two heads have the same tensors and compute the same; embeddings that are the target's may be missing."""
    ours, theirs = first.state_dict(), second.state_dict()
    if "embed_tokens.weight" not in theirs:
        ours.pop("embed_tokens.weight", None)
    if "fc.bias" not in ours and "fc.bias" in theirs:  # SGLang's `fc` of EAGLE-1 has one in any case
        assert not theirs.pop("fc.bias").any()
    assert ours.keys() == theirs.keys()
    assert all(tensor.dtype == theirs[name].dtype for name, tensor in ours.items())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert first.config.resolve_feature_layer_ids(8) == second.config.resolve_feature_layer_ids(8)
    assert first.config.feature_sources(8) == second.config.feature_sources(8)
    left_out = {
        "own_embed_tokens", "fc_bias", "published_feature_layer_ids", "feature_layer_ids", "name_or_path",
        "_name_or_path", "dtype", "rope_parameters",
    }  # fmt: skip
    if not is_hub_id(first.config.base_model_name_or_path):
        left_out.add("base_model_name_or_path")  # a path is of no use to others
        assert second.config.base_model_name_or_path in (None, first.config.base_model_name_or_path)
    fields = {name: value for name, value in first.config.to_dict().items() if name not in left_out}
    assert fields == {name: value for name, value in second.config.to_dict().items() if name not in left_out}
    assert first.config.rope_parameters == second.config.rope_parameters
    features, embeds = random_inputs(first)
    with torch.no_grad():
        outputs = [d.float()(d.project_features(features), embeds).last_hidden_state for d in (first, second)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("layout", POSSIBLE)
@pytest.mark.parametrize("name", NAMES)
def test_round_trips_are_exact_or_refused(tmp_path, name, layout):
    draft = EagleDraftModel.from_pretrained(SAMPLES / name)
    if name not in POSSIBLE[layout]:
        with pytest.raises(ValueError, match="cannot be exported|has rotary embeddings|has no words|always reads"):
            export_checkpoint(draft, tmp_path, layout)
        return
    same_head(draft, EagleDraftModel.from_pretrained(export_checkpoint(draft, tmp_path, layout)))


@pytest.mark.parametrize("name", NAMES)
def test_our_own_layout_keeps_every_head(tmp_path, name):
    draft = EagleDraftModel.from_pretrained(SAMPLES / name)
    draft.save_pretrained(tmp_path)
    again = EagleDraftModel.from_pretrained(tmp_path)
    name = draft.config.base_model_name_or_path
    draft.config.base_model_name_or_path = name if is_hub_id(name) else None  # paths are not written
    assert again.config.to_diff_dict() == draft.config.to_diff_dict()
    same_head(draft, again)


def test_names_of_engines_and_inventors_mean_the_same():
    assert LAYOUTS["sglang"] is LAYOUTS["specforge"]
    assert LAYOUTS["tensorrt-llm"] is LAYOUTS["modelopt"]


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'gguf', expected one of safeailab, speculators, vllm"):
        export_checkpoint(random_draft(tiny_llama()), tmp_path, "gguf")


class TestTheTarget:
    """Files that travel name a repository, or nothing: never a place on this machine."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("given", ["argument", "configuration"])
    def test_its_path_is_written_nowhere(self, tmp_path, layout, given):
        folder = str(tmp_path / "my-target")
        tiny_llama().config.save_pretrained(folder)
        draft = random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5])
        draft.config.base_model_name_or_path = folder if given == "configuration" else None
        written = export_checkpoint(draft, tmp_path / "head", layout, target=folder if given == "argument" else None)
        assert "my-target" not in (written / "config.json").read_text()
        assert EagleDraftModel.from_pretrained(written).config.base_model_name_or_path is None

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_its_repository_is_written_also_where_it_was_read_from_the_cache(self, tmp_path, layout):
        draft = random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5])
        draft.config.base_model_name_or_path = str(tmp_path / "models--org--target" / "snapshots" / "1a2b")
        written = export_checkpoint(draft, tmp_path / "head", layout)
        assert EagleDraftModel.from_pretrained(written).config.base_model_name_or_path == "org/target"

    def test_an_export_that_needs_its_name_says_so(self, tmp_path, caplog):
        export_checkpoint(random_draft(tiny_llama()), tmp_path / "head", "vllm", target=str(tmp_path))
        assert "is a path, which nobody else can use. Pass `target`" in caplog.text

    @pytest.mark.parametrize("layout", ["vllm", "sglang", "modelopt", "llama.cpp"])
    def test_lists_are_settled_where_its_layers_are_known(self, tmp_path, layout):
        """Of 8 layers, none has the number 8: a published [1, 4, 8] means hidden states."""
        tiny_llama().config.save_pretrained(tmp_path / "target")
        draft = random_draft(tiny_llama(), feature_layer_ids=[2, 5, 9])
        draft.config.published_feature_layer_ids = [1, 4, 8]
        if layout == "llama.cpp":  # which cannot read the last one
            with pytest.raises(ValueError, match=r"\[1, 4, 8\], and its target has 8 layers"):
                export_checkpoint(draft, tmp_path / "head", layout, target=str(tmp_path / "target"))
            return
        written = export_checkpoint(draft, tmp_path / "head", layout, target=str(tmp_path / "target"))
        assert json.loads((written / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"] == [1, 4, 8]

    def test_hidden_states_that_it_does_not_have_are_refused(self, tmp_path):
        tiny_llama().config.save_pretrained(tmp_path / "target")
        draft = random_draft(tiny_llama(), feature_layer_ids=[2, 5, 9])
        with pytest.raises(ValueError, match="belongs to another target"):
            export_checkpoint(draft, tmp_path / "head", "vllm", target=str(tmp_path / "target"))


class TestTheHeadsOwnEmbedding:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_it_is_kept_or_its_loss_is_said(self, tmp_path, layout, caplog):
        draft = random_draft(tiny_llama(), own_embed_tokens=True, feature_layer_ids=[2, 4, 5])
        again = EagleDraftModel.from_pretrained(export_checkpoint(draft, tmp_path, layout, target="org/target"))
        lost = again.embed_tokens is None
        assert lost == (layout in ("safeailab", "sglang", "specforge", "modelopt", "tensorrt-llm"))
        assert ("own embedding is left out" in caplog.text) == lost
        assert lost or torch.equal(again.embed_tokens.weight, draft.embed_tokens.weight)

    @pytest.mark.parametrize(("layout", "lost"), [("vllm", False), ("sglang", True)])
    def test_with_latent_attention(self, tmp_path, layout, lost, caplog):
        latent = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
        draft = random_draft(
            tiny_llama(), own_embed_tokens=True, feature_layer_ids=[2, 4, 5], num_key_value_heads=4, **latent
        )
        again = EagleDraftModel.from_pretrained(export_checkpoint(draft, tmp_path, layout))
        assert (again.embed_tokens is None) == lost == ("own embedding is left out" in caplog.text)

    @pytest.mark.parametrize("layout", ["safeailab", "sglang", "modelopt"])
    @pytest.mark.parametrize("shard_size", ["5GB", "100KB"], ids=["one file", "shards"])
    def test_it_is_compared_with_a_target_that_is_here(self, tmp_path, layout, shard_size, caplog):
        target = tiny_llama()
        target.save_pretrained(tmp_path / "target", max_shard_size=shard_size)
        draft = random_draft(target, own_embed_tokens=True, feature_layer_ids=[2, 4, 5])
        with pytest.raises(ValueError, match="an embedding of its own that is not the target's"):
            export_checkpoint(draft, tmp_path / "head", layout, target=str(tmp_path / "target"))
        draft.embed_tokens.weight.data.copy_(target.get_input_embeddings().weight)
        for dtype in (torch.float32, torch.bfloat16):  # a copy in fewer digits is one, too
            export_checkpoint(draft.to(dtype), tmp_path / "head", layout, target=str(tmp_path / "target"))
        assert not caplog.records

    def test_heads_without_one_are_exported_in_silence(self, tmp_path, caplog):
        for layout in LAYOUTS:
            export_checkpoint(
                random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5]), tmp_path / layout, layout, target="org/target"
            )
        assert not caplog.records


def test_the_head_itself_is_left_as_it_was(tmp_path):
    draft = random_draft(tiny_llama(), feature_layer_ids=[2, 4, 5], own_embed_tokens=True)
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    for layout in LAYOUTS:
        export_checkpoint(draft, tmp_path / layout, layout)
    after = draft.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class TestCommand:
    def test_converts(self, tmp_path, capsys):
        head, folder = str(SAMPLES / "safeailab-eagle3-llama3"), str(tmp_path)
        assert main(["convert", head, "--to", "vllm", "--output", folder, "--target", "org/target"]) == 0
        assert "in the layout vllm" in capsys.readouterr().out
        draft = EagleDraftModel.from_pretrained(folder)
        assert draft.config.base_model_name_or_path == "org/target"
        same = EagleDraftModel.from_pretrained(head)
        assert all(torch.equal(tensor, draft.state_dict()[name]) for name, tensor in same.state_dict().items())

    def test_our_own_layout_and_another_dtype(self, tmp_path):
        head = str(SAMPLES / "angelslim-eagle3")
        arguments = ["--to", "eagle_hf", "--output", str(tmp_path), "--dtype", "float16"]
        assert main(["convert", head, *arguments, "--feature-layer-ids", "1", "3", "4"]) == 0
        draft = EagleDraftModel.from_pretrained(tmp_path)
        assert (draft.dtype, draft.config.feature_layer_ids) == (torch.float16, [1, 3, 4])

    def test_says_why_not(self, tmp_path, capsys):
        head = str(SAMPLES / "speculators-0.9-eagle3-llama")
        assert main(["convert", head, "--to", "sglang", "--output", str(tmp_path)]) == 1
        assert "norm_before_residual" in capsys.readouterr().err
