"""Loading heads: the authors' layout, our own, and every way in which a file can be wrong."""

import json
import pickle
import shutil

import pytest
import torch
from conftest import GOLDEN
from layouts import FLAT, check_reference, dense_head, read_head, rename, write_head
from safetensors.torch import save_file

from eagle_hf import EagleDraftModel


@pytest.fixture
def head(tmp_path):
    """A copy of an authors' EAGLE-3 head that may be damaged."""
    return copy_head("A_eagle3", tmp_path)


def copy_head(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(GOLDEN / "drafts" / name, folder)
    return folder


def read(folder):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return json.loads((folder / "config.json").read_text()), weights


def write(folder, config=None, weights=None):
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        torch.save(weights, folder / "pytorch_model.bin")


def edit(folder, config=None, **tensors):
    """Change entries of the configuration and tensors; `None` removes them. Dots in tensor names are `__` here."""
    old_config, weights = read(folder)
    for name, value in (config or {}).items():
        old_config.pop(name, None)
        if value is not None:
            old_config[name] = value
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    write(folder, old_config, weights)


def load(folder):
    return EagleDraftModel.from_pretrained(folder)


class TestAuthorsLayout:
    @pytest.mark.parametrize("name", ["A_eagle3", "A_eagle3_narrow", "A_eagle1"])
    def test_tensors_arrive_as_they_are(self, tmp_path, name):
        folder = copy_head(name, tmp_path)
        _, weights = read(folder)
        draft = load(folder)
        ours = draft.state_dict()
        for key, tensor in weights.items():
            if key != "t2d":
                assert torch.equal(ours.pop(key.replace("midlayer.", "layers.0.")), tensor)
        assert not ours
        assert draft.config.eagle_version == (1 if name == "A_eagle1" else 3)
        assert draft.config.own_embed_tokens == (name != "A_eagle3")

    def test_fields_follow_the_authors_defaults(self, tmp_path):
        config = load(copy_head("A_eagle1", tmp_path)).config
        assert (config.fc_bias, config.qkv_bias, config.feature_layer_ids) == (True, False, [-1])
        narrow = load(copy_head("A_eagle3_narrow", tmp_path)).config
        assert (narrow.hidden_size, narrow.target_hidden_size, narrow.head_dim) == (32, 64, 8)
        assert narrow.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
        assert narrow.feature_layer_ids is None

    def test_safetensors_are_preferred_and_read_alone(self, head):
        _, weights = read(head)
        marked = weights["norm.weight"] + 1
        save_file(weights | {"norm.weight": marked}, head / "model.safetensors")
        assert torch.equal(load(head).norm.weight, marked)
        (head / "pytorch_model.bin").unlink()
        assert torch.equal(load(head).norm.weight, marked)

    def test_shards_are_joined(self, head):
        _, weights = read(head)
        names = sorted(weights)
        files = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
        for file, part in files.items():
            save_file({name: weights[name] for name in part}, head / file)
        index = {"weight_map": {name: file for file, part in files.items() for name in part}}
        (head / "model.safetensors.index.json").write_text(json.dumps(index))
        (head / "pytorch_model.bin").unlink()
        assert torch.equal(load(head).fc.weight, weights["fc.weight"])

    def test_an_index_cannot_point_outside_the_repository(self, head):
        _, weights = read(head)
        save_file(weights, head.parent / "secret.safetensors")
        (head / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc": "../secret.safetensors"}}))
        with pytest.raises(OSError, match="not in"):
            load(head)

    def test_a_wrong_number_of_layers_in_the_configuration_is_harmless(self, head):
        edit(head, {"num_hidden_layers": 40})
        assert load(head).config.num_hidden_layers == 1

    def test_tensors_of_the_target_are_dropped(self, head):
        edit(
            head,
            target_model__lm_head__weight=torch.zeros(320, 64),
            target_model__model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
        )
        load(head)

    @pytest.mark.parametrize("with_zero_maps", [True, False])
    def test_a_full_vocabulary_needs_no_map(self, head, with_zero_maps):
        maps = (
            (torch.zeros(320, dtype=torch.long), torch.ones(320, dtype=torch.bool)) if with_zero_maps else (None, None)
        )
        edit(head, {"draft_vocab_size": 320}, lm_head__weight=torch.randn(320, 64), d2t=maps[0], t2d=maps[1])
        draft = load(head)
        assert not draft.has_reduced_vocabulary
        assert torch.equal(draft.draft_to_target_ids, torch.arange(320))

    def test_rope_of_the_head_is_its_own(self, head):
        edit(head, {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
        assert load(head).config.rope_parameters == {"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0}

    def test_qkv_bias_of_qwen2_heads(self, tmp_path):
        folder = copy_head("A_eagle1", tmp_path)
        prefix = "layers__0__self_attn__"
        edit(folder, {"qkv_bias": True}, **{f"{prefix}{p}_proj__bias": torch.randn(64) for p in "qkv"})
        assert load(folder).layers[0].self_attn.q_proj.bias is not None

    def test_half_precision_heads_stay_in_half_precision(self, head):
        _, weights = read(head)
        write(head, weights={n: t.half() if t.is_floating_point() else t for n, t in weights.items()})
        assert load(head).dtype == torch.float16
        assert EagleDraftModel.from_pretrained(head, dtype=torch.float32).dtype == torch.float32


def check_refusal(kind, folder, *messages):
    with pytest.raises(kind) as error:
        load(folder)
    for message in messages:
        assert message in str(error.value)


class TestWrongTensors:
    def check(self, folder, *messages):
        check_refusal(ValueError, folder, *messages)

    def test_missing(self, head):
        edit(head, midlayer__mlp__up_proj__weight=None, norm__weight=None)
        self.check(head, "`layers.0.mlp.up_proj.weight` (128, 64) is missing", "`norm.weight` (64,) is missing")

    def test_unexpected(self, head):
        edit(head, midlayer__self_attn__q_norm__weight=torch.ones(16))
        self.check(head, "`layers.0.self_attn.q_norm.weight` (16,) is unexpected")

    def test_wrong_shape(self, head):
        edit(head, fc__weight=torch.zeros(64, 96))
        self.check(head, "`fc.weight` has shape (64, 96), expected (64, 192)")

    def test_bias_that_the_configuration_denies(self, tmp_path):
        folder = copy_head("A_eagle1", tmp_path)
        edit(folder, {"bias": False})
        self.check(folder, "`fc.bias` (64,) is unexpected")

    def test_bias_that_the_configuration_expects(self, tmp_path):
        folder = copy_head("A_eagle1", tmp_path)
        edit(folder, fc__bias=None)
        self.check(folder, "`fc.bias` (64,) is missing")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite(self, head, value):
        _, weights = read(head)
        weights["midlayer.self_attn.k_proj.weight"][3, 4] = value
        write(head, weights=weights)
        self.check(head, "NaN or infinite", "`layers.0.self_attn.k_proj.weight`")

    def test_reduced_vocabulary_without_map(self, head):
        edit(head, d2t=None)
        self.check(head, "no `d2t`", "320 target tokens", "80 draft")

    def test_map_of_floats(self, head):
        _, weights = read(head)
        edit(head, d2t=weights["d2t"].float())
        self.check(head, "`d2t` must hold integers, got torch.float32")

    def test_map_of_another_size(self, head):
        edit(head, d2t=torch.zeros(79, dtype=torch.long))
        self.check(head, "`d2t` has shape (79,), expected (80,)")

    def test_map_out_of_range(self, head):
        _, weights = read(head)
        weights["d2t"][-1] += 1000
        edit(head, d2t=weights["d2t"])
        self.check(head, "`d2t` maps to target ids", "offsets")

    def test_map_that_is_not_injective(self, head):
        _, weights = read(head)
        weights["d2t"][1] = weights["d2t"][0] - 1
        edit(head, d2t=weights["d2t"], t2d=None)
        self.check(head, "maps 1 draft tokens to target tokens of others")

    def test_maps_that_contradict_each_other(self, head):
        _, weights = read(head)
        edit(head, t2d=weights["t2d"].roll(1))
        self.check(head, "`d2t` and `t2d` contradict each other")

    def test_t2d_of_another_vocabulary(self, head):
        edit(head, t2d=torch.ones(512, dtype=torch.bool))
        self.check(head, "`t2d` has shape (512,), expected (320,)")

    def test_full_vocabulary_with_a_map_elsewhere(self, head):
        edit(
            head, {"draft_vocab_size": 320}, lm_head__weight=torch.randn(320, 64), d2t=torch.ones(320).long(), t2d=None
        )
        self.check(head, "every token must map to itself")

    def test_a_configuration_that_says_too_little(self, head):
        edit(head, {"hidden_size": None, "vocab_size": None})
        self.check(head, "lacks hidden_size, vocab_size")

    def test_something_that_is_no_head(self, head):
        write(head, weights={"wte.weight": torch.zeros(4, 4)})
        self.check(head, "no EAGLE head in a layout that is known here", "wte.weight")


class TestDamagedFiles:
    def check(self, folder, *messages):
        check_refusal(OSError, folder, *messages)

    def test_no_configuration(self, head):
        (head / "config.json").unlink()
        self.check(head, "no config.json")

    def test_no_weights(self, head):
        (head / "pytorch_model.bin").unlink()
        self.check(head, "neither model.safetensors nor pytorch_model.bin")

    def test_configuration_is_not_json(self, head):
        (head / "config.json").write_text("{oops")
        self.check(head, "config.json is not valid JSON")

    def test_configuration_is_no_object(self, head):
        (head / "config.json").write_text("[1]")
        self.check(head, "holds a JSON list")

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_git_lfs_pointer(self, head, name):
        (head / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        self.check(head, name, "Git LFS pointer")

    @pytest.mark.parametrize("size", [0, 7, 1000])
    def test_truncated_safetensors(self, head, size):
        save_file(read(head)[1], head / "model.safetensors")
        with open(head / "model.safetensors", "r+b") as file:
            file.truncate(size)
        self.check(head, "model.safetensors", f"({size} bytes)")

    @pytest.mark.parametrize("size", [0, 7, 1000])
    def test_truncated_pickle(self, head, size):
        with open(head / "pytorch_model.bin", "r+b") as file:
            file.truncate(size)
        self.check(head, "pytorch_model.bin")

    def test_pickles_are_never_executed(self, head, tmp_path):
        victim = tmp_path / "executed"

        class Malicious:
            def __reduce__(self):
                return (victim.write_text, ("executed",))

        with open(head / "pytorch_model.bin", "wb") as file:
            pickle.dump({"fc.weight": Malicious()}, file)
        self.check(head, "pytorch_model.bin")
        torch.save({"fc.weight": Malicious()}, head / "pytorch_model.bin")
        self.check(head, "nothing else is read from it, for safety")
        assert not victim.exists()

    def test_weights_that_are_no_tensors(self, head):
        torch.save({"fc.weight": [1, 2]}, head / "pytorch_model.bin")
        self.check(head, "dictionary of tensors")

    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(OSError):  # noqa: PT011 - the message is transformers'
            load(tmp_path / "nowhere")


def test_unknown_arguments_are_refused(head):
    with pytest.raises(TypeError):
        EagleDraftModel.from_pretrained(head, revison="main")


class TestWithoutFc:
    """A head that lost its `fc` would load as one that needs none, and hardly a draft would be accepted."""

    FLAGS = [None, {}, {"use_aux_hidden_state": True}, {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}]

    def write(self, folder, eagle_config, **config):
        weights = dense_head(num_features=1)
        del weights["fc.weight"]
        return write_head(folder, FLAT | config | {"eagle_config": eagle_config}, weights)

    @pytest.mark.parametrize("eagle_config", FLAGS)
    def test_it_is_refused_unless_the_configuration_says_that_there_is_none(self, tmp_path, eagle_config):
        check_refusal(ValueError, self.write(tmp_path, eagle_config), "no `fc.weight`", "the file is incomplete")

    @pytest.mark.parametrize("prefix", ["midlayer.", "model.layers.0."])
    def test_in_every_layout(self, tmp_path, prefix):
        weights = rename(dense_head(), "layers.0.", prefix)
        del weights["fc.weight"]
        check_refusal(ValueError, write_head(tmp_path, FLAT, weights), "no `fc.weight`")

    def test_in_the_nested_layout_and_in_our_own(self, tmp_path, head):
        weights = dense_head()
        del weights["fc.weight"]
        nested = {"transformer_layer_config": FLAT, "draft_vocab_size": 128, "speculators_model_type": "eagle3"}
        check_refusal(ValueError, write_head(tmp_path / "nested", nested, weights), "no `fc.weight`")
        load(head).save_pretrained(tmp_path / "own")
        config, weights = read_head(tmp_path / "own")
        del weights["fc.weight"]
        check_refusal(ValueError, write_head(tmp_path / "own", config, weights), "`fc.weight` (64, 192) is missing")

    def test_configuration_or_user_may_say_so(self, tmp_path):
        assert not load(self.write(tmp_path, {"use_aux_hidden_state": False})).config.use_fc
        draft = EagleDraftModel.from_pretrained(self.write(tmp_path, None), use_fc=False)
        assert (draft.config.use_fc, draft.config.feature_layer_ids) == (False, [-1])


class TestOtherSpellings:
    """Variants of configurations that were published for heads that read other than three hidden states."""

    @pytest.mark.parametrize("num_features", [2, 4, 5])
    @pytest.mark.parametrize("where", ["top level", "eagle_config", "layer_ids", "target_layer_ids"])
    def test_lists_of_any_length(self, tmp_path, num_features, where):
        ids = [2, 4, 5, 7, 8][:num_features]
        outputs = [i - 1 for i in ids]
        config = {
            "top level": {"eagle_aux_hidden_state_layer_ids": ids, "num_aux_hidden_states": num_features},
            "eagle_config": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": outputs}},
            "layer_ids": {"eagle_config": {"layer_ids": ids}},
            "target_layer_ids": {"target_layer_ids": outputs},
        }[where]
        weights = dense_head(num_features=num_features)
        draft = load(write_head(tmp_path, FLAT | config, weights))
        assert draft.config.resolve_feature_layer_ids(9) == ids
        check_reference(draft, weights)

    def test_a_number_without_a_list_asks_for_the_list(self, tmp_path):
        folder = write_head(tmp_path, FLAT | {"num_aux_hidden_states": 5}, dense_head(num_features=5))
        check_refusal(ValueError, folder, "reads 5 hidden states", "Say which ones")

    @pytest.mark.parametrize("ids", [[5, 2, 4], [7, 1]])
    def test_lists_that_do_not_ascend_are_read_in_their_order(self, tmp_path, ids):
        weights = dense_head(num_features=len(ids))
        draft = load(write_head(tmp_path, FLAT | {"eagle_aux_hidden_state_layer_ids": ids}, weights))
        assert draft.config.resolve_feature_layer_ids(8) == ids
        check_reference(draft, weights)
