"""
Files from strangers: whatever is wrong with one, loading stops with a message that names it, and nothing of it runs.
The cases are those that other loaders let through or stumble over.
"""

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from eagle_hf import EagleConfig, EagleDraftModel


@pytest.fixture
def head(tmp_path):
    """A head in our own layout, one safetensors file, that may be damaged."""
    EagleDraftModel.from_pretrained(GOLDEN / "drafts" / "A_eagle3").save_pretrained(tmp_path / "head")
    return tmp_path / "head"


@pytest.fixture
def pickled(tmp_path):
    """An authors' head, one PyTorch file, that may be damaged."""
    shutil.copytree(GOLDEN / "drafts" / "A_eagle3", tmp_path / "pickled")
    return tmp_path / "pickled"


def weights_of(folder):
    return dict(EagleDraftModel.from_pretrained(folder).state_dict())


def edit_tensors(folder, **changes):
    """Replace tensors of the safetensors file, `None` removes them; dots in names are `__` here."""
    weights = weights_of(folder)
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def refuses(folder, kind, *messages, **kwargs):
    with pytest.raises(kind) as error:
        EagleDraftModel.from_pretrained(folder, **kwargs)
    assert type(error.value) in (OSError, ValueError)  # what callers may rely on, not a library's own error
    for message in messages:
        assert message in str(error.value)
    return error.value


class TestTensors:
    def test_wrong_shape(self, head):
        edit_tensors(head, fc__weight=torch.zeros(64, 96))
        refuses(head, ValueError, "`fc.weight` has shape (64, 96), expected (64, 192)", "another target size")

    def test_missing_weight(self, head):
        edit_tensors(head, layers__0__mlp__up_proj__weight=None)
        refuses(head, ValueError, "`layers.0.mlp.up_proj.weight` (128, 64) is missing")

    def test_unexpected_weight(self, head):
        edit_tensors(head, fc_extra__weight=torch.zeros(3))
        refuses(head, ValueError, "`fc_extra.weight` (3,) is unexpected")

    def test_map_without_a_draft_vocabulary(self, head):
        edit_config(head, draft_vocab_size=None)
        refuses(head, ValueError, "holds a draft vocabulary (`d2t` or `t2d`), but the head has no `lm_head`")

    @pytest.mark.parametrize(
        ("d2t", "message"),
        [
            (None, "has no `d2t`"),
            (torch.zeros(80), "`d2t` must hold integers, got torch.float32"),
            (torch.full((80,), 500), "`d2t` maps to target ids 500 to 579, but the vocabulary has 320 tokens"),
            (torch.full((80,), 2**63 - 1), "but the vocabulary has 320 tokens"),  # overflows
            (torch.arange(80, 0, -1), "`d2t` maps 79 draft tokens to target tokens of others"),
            (torch.zeros(79, dtype=torch.long), "`d2t` has shape (79,), expected (80,)"),
        ],
    )
    def test_bad_map(self, head, d2t, message):
        edit_tensors(head, d2t=d2t)
        refuses(head, ValueError, message)

    def test_maps_that_contradict_each_other(self, head):
        edit_tensors(head, t2d=torch.zeros(320, dtype=torch.bool))
        refuses(head, ValueError, "`d2t` and `t2d` contradict each other at 80 target tokens")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_not_finite(self, head, value, dtype):
        tensor = torch.zeros(64, 192, dtype=dtype)
        tensor[5, 7] = value
        edit_tensors(head, fc__weight=tensor)
        refuses(head, ValueError, "1 tensors hold NaN or infinite values, `fc.weight`", "allow_non_finite=True")
        loaded = EagleDraftModel.from_pretrained(head, allow_non_finite=True)
        assert not loaded.fc.weight.isfinite().all()

    def test_the_largest_finite_values_are_fine(self, head):
        edit_tensors(head, fc__weight=torch.full((64, 192), torch.finfo(torch.float32).max))
        assert EagleDraftModel.from_pretrained(head).fc.weight.isfinite().all()

    def test_integers_instead_of_values(self, head):
        edit_tensors(head, fc__weight=torch.zeros(64, 192, dtype=torch.int8))
        refuses(head, ValueError, "`fc.weight` holds torch.int8, expected floating-point values")

    def test_quantised_to_eight_bits(self, head):
        edit_tensors(head, fc__weight=torch.zeros(64, 192).to(torch.float8_e4m3fn))
        refuses(head, ValueError, "`fc.weight` hold torch.float8_e4m3fn", "quantised head")


class TestDamagedFiles:
    @pytest.mark.parametrize("size", [0, 4, 300])
    def test_truncated(self, head, size):
        with open(head / "model.safetensors", "r+b") as file:
            file.truncate(size)
        error = refuses(head, OSError, str(head / "model.safetensors"), f"({size} bytes) cannot be read as weights")
        assert error.__cause__ is not None

    def test_tensors_cut_off(self, head):
        with open(head / "model.safetensors", "r+b") as file:
            file.truncate((head / "model.safetensors").stat().st_size - 100)
        refuses(head, OSError, "model.safetensors", "cannot be read as weights")

    @pytest.mark.parametrize("size", [0, 4, 3000])
    def test_truncated_pickle(self, pickled, size):
        with open(pickled / "pytorch_model.bin", "r+b") as file:
            file.truncate(size)
        refuses(pickled, OSError, "pytorch_model.bin")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_git_lfs_pointer(self, head, name):
        (head / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 850000000\n")
        refuses(head, OSError, name, "It is a Git LFS pointer", "run `git lfs pull`, or `hf download`")

    @pytest.mark.parametrize("length", [101 * 2**20, 2**63 - 1, 2**64 - 1])
    def test_header_that_claims_to_be_huge(self, head, length):
        (head / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 100)
        refuses(head, OSError, "model.safetensors", "cannot be read as weights", "header")

    @pytest.mark.parametrize(
        "header",
        [
            b"not json at all",
            b'{"fc.weight":{"dtype":"F32","shape":[64,192],"data_offsets":[0,99999999]}}',
            b'{"fc.weight":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,8]}}',
            b"\xff\xfe" * 20,
        ],
    )
    def test_header_of_nonsense(self, head, header):
        (head / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
        refuses(head, OSError, "model.safetensors", "cannot be read as weights")

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{oops", "is not valid JSON"),
            (b"", "is not valid JSON"),
            (b"\xff\xfe\x00", "is not valid JSON"),
            (b"[" * 100_000, "is not valid JSON"),
            (b"[1, 2]", "holds a JSON list, expected an object"),
        ],
    )
    def test_configuration_is_not_json(self, head, name, content, message):
        (head / name).write_bytes(content)
        refuses(head, OSError, name, message)

    def test_configuration_that_would_fill_the_memory(self, head):
        with open(head / "config.json", "r+b") as file:
            file.truncate(65 * 2**20)  # a hole: takes no space here
        refuses(head, OSError, "config.json", "more than any configuration")

    def test_no_configuration(self, head):
        (head / "config.json").unlink()
        refuses(head, OSError, "has no config.json")

    def test_no_weights(self, head):
        (head / "model.safetensors").unlink()
        refuses(head, OSError, "neither model.safetensors nor pytorch_model.bin")


class TestConfiguration:
    @pytest.mark.parametrize("value", [-1, 0, 2**31, 10**30])
    @pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads"])
    def test_sizes_that_make_no_sense(self, head, name, value):
        edit_config(head, **{name: value})
        refuses(head, ValueError, name)

    @pytest.mark.parametrize("value", ["64", 64.5, None, [64]])
    def test_sizes_of_another_type(self, head, value):
        edit_config(head, hidden_size=value)
        refuses(head, ValueError, "hidden_size")

    def test_a_billion_layers_are_never_built(self, head):
        edit_config(head, num_hidden_layers=2**30)
        refuses(head, ValueError, f"config.json describes a head of {2**30} layers", "holds only 14 tensors")

    def test_a_hundred_thousand_features_are_never_built(self, head):
        edit_config(head, feature_layer_ids=list(range(10**5)), fc_norm=True)
        refuses(head, ValueError, "reads 100000 hidden states", "holds only 14 tensors")

    def test_unknown_version(self, head):
        edit_config(head, eagle_version=7)
        refuses(head, ValueError, "`eagle_version` must be 1", "got 7")


class TestIndex:
    @pytest.fixture
    def sharded(self, head):
        weights = weights_of(head)
        (head / "model.safetensors").unlink()
        names = sorted(weights)
        for file, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
            save_file({name: weights[name].contiguous() for name in part}, head / file)
        self.map = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
        self.write(head, self.map)
        return head

    def write(self, folder, weight_map):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_shards_are_joined(self, sharded):
        EagleDraftModel.from_pretrained(sharded)

    @pytest.mark.parametrize("name", ["../secret.safetensors", "{absolute}", "a/../../secret.safetensors", "..", ""])
    def test_path_out_of_the_repository(self, sharded, name):
        save_file({"fc.weight": torch.zeros(2)}, sharded.parent / "secret.safetensors")
        self.write(sharded, {"fc.weight": name.format(absolute=sharded.parent / "secret.safetensors")})
        refuses(sharded, OSError, "names the weight file", "which is not in")

    @pytest.mark.parametrize("weight_map", [None, {}, [], {"fc.weight": 3}, {"fc.weight": None}, "a.safetensors"])
    def test_index_of_another_form(self, sharded, weight_map):
        self.write(sharded, weight_map)
        refuses(sharded, OSError, "model.safetensors.index.json has no `weight_map`")

    def test_shard_that_is_not_there(self, sharded):
        (sharded / "b.safetensors").unlink()
        refuses(sharded, OSError, "names the weight file 'b.safetensors', which is not in")

    def test_tensor_that_is_in_no_shard(self, sharded):
        self.write(sharded, {**self.map, "fc.bias": "a.safetensors"})
        refuses(sharded, OSError, "lists 1 tensors that are in none of its files, such as ['fc.bias']")

    def test_tensor_that_is_in_two_shards(self, sharded):
        shutil.copy(sharded / "a.safetensors", sharded / "c.safetensors")
        self.write(sharded, {**self.map, "fc.weight": "c.safetensors"})
        refuses(sharded, OSError, "holds tensors that another file", "as well")


class TestLinks:
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_link_out_of_the_folder_is_not_followed(self, head, name):
        shutil.move(head / name, head.parent / "elsewhere")
        (head / name).symlink_to(head.parent / "elsewhere")
        refuses(head, OSError, name, "outside the folder of the head, and is not followed")

    def test_a_shard_that_is_a_link(self, head):
        shutil.move(head / "model.safetensors", head.parent / "elsewhere")
        (head / "a.safetensors").symlink_to("../elsewhere")
        index = {"weight_map": {"fc.weight": "a.safetensors"}}
        (head / "model.safetensors.index.json").write_text(json.dumps(index))
        refuses(head, OSError, "a.safetensors", "is not followed")

    def test_links_inside_the_folder_and_to_the_folder_are_fine(self, head):
        shutil.move(head / "model.safetensors", head / "step-100.safetensors")
        (head / "model.safetensors").symlink_to("step-100.safetensors")
        (head.parent / "latest").symlink_to(head)
        EagleDraftModel.from_pretrained(head.parent / "latest")

    def test_the_cache_of_the_hub_is_made_of_links(self, head):
        repository = head.parent / "models--org--head"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for file in head.iterdir():
            shutil.copy(file, repository / "blobs" / f"of-{file.name}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"of-{file.name}")
        EagleDraftModel.from_pretrained(snapshot)


class TestPickles:
    """PyTorch files are read as tensors only; the pickle program in them may do nothing else."""

    @pytest.fixture
    def victim(self, tmp_path):
        return tmp_path / "executed"

    def malicious(self, victim):
        class Malicious:
            def __reduce__(self):
                return (victim.write_text, ("executed",))

        return {"fc.weight": Malicious()}

    def test_the_sample_does_run_where_nothing_stops_it(self, pickled, victim):
        torch.save(self.malicious(victim), pickled / "pytorch_model.bin")
        torch.load(pickled / "pytorch_model.bin", weights_only=False)
        assert victim.exists()  # else the next test would prove nothing

    def test_nothing_of_a_pickle_runs(self, pickled, victim):
        torch.save(self.malicious(victim), pickled / "pytorch_model.bin")
        refuses(pickled, OSError, "pytorch_model.bin", "nothing else is read from it, for safety")
        with open(pickled / "pytorch_model.bin", "wb") as file:
            pickle.dump(self.malicious(victim), file)
        refuses(pickled, OSError, "pytorch_model.bin")
        assert not victim.exists()

    def test_code_in_the_repository_is_not_imported(self, head, victim):
        code = f"from pathlib import Path\nPath({str(victim)!r}).write_text('executed')\n"
        for name in ("configuration_eagle.py", "modeling_eagle.py", "config.py", "custom_generate/generate.py"):
            (head / name).parent.mkdir(exist_ok=True)
            (head / name).write_text(code)
        edit_config(head, auto_map={"AutoModel": "modeling_eagle.EagleDraftModel", "": "config.EagleConfig"})
        EagleDraftModel.from_pretrained(head, trust_remote_code=True)
        assert not victim.exists()

    def test_safetensors_are_read_even_beside_a_malicious_pickle(self, head, victim):
        torch.save(self.malicious(victim), head / "pytorch_model.bin")
        EagleDraftModel.from_pretrained(head)
        assert not victim.exists()

    def test_only_a_pickle(self, pickled):
        draft = EagleDraftModel.from_pretrained(pickled)
        draft.save_pretrained(pickled / "saved")
        assert sorted(path.name for path in (pickled / "saved").iterdir()) == [
            "config.json", "generation_config.json", "model.safetensors",
        ]  # fmt: skip

    def test_the_old_format_of_torch(self, pickled):
        weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
        torch.save(weights, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        assert torch.equal(EagleDraftModel.from_pretrained(pickled).fc.weight, weights["fc.weight"])

    @pytest.mark.parametrize("content", [[1, 2], {"fc.weight": [1.0]}, {"model": {"fc.weight": torch.zeros(2)}}, None])
    def test_something_else_than_tensors(self, pickled, content):
        torch.save(content, pickled / "pytorch_model.bin")
        refuses(pickled, OSError, "does not hold a dictionary of tensors")

    def test_a_few_bytes_that_pose_as_terabytes(self, pickled):
        weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
        weights["fc.weight"] = torch.zeros(1).expand(2**20, 2**20)
        torch.save(weights, pickled / "pytorch_model.bin")
        refuses(pickled, OSError, "claims that `fc.weight` has shape (1048576, 1048576)")

    def test_sparse_tensors(self, pickled):
        torch.save({"fc.weight": torch.zeros(4, 4).to_sparse()}, pickled / "pytorch_model.bin")
        refuses(pickled, OSError, "`fc.weight` is no plain dense tensor")

    def test_a_compressed_bomb(self, pickled):
        torch.save({"fc.weight": torch.zeros(2**20)}, pickled / "plain.bin")
        with (
            zipfile.ZipFile(pickled / "plain.bin") as plain,
            zipfile.ZipFile(pickled / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry))
        refuses(pickled, OSError, "its content is compressed")


class TestPairing:
    """What only shows when the head meets its target, refused when `generate` is entered."""

    @pytest.fixture
    def target(self, golden_target):
        return golden_target

    def generate(self, target, draft, *messages):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the messages follow
            target.generate(torch.tensor([[3, 4, 5]]), assistant_model=draft, max_new_tokens=4)
        for message in messages:
            assert message in str(error.value)

    def draft(self, **changes):
        config = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        return EagleDraftModel(EagleConfig(**{**config, "base_model_name_or_path": "org/trained-for", **changes}))

    def test_another_vocabulary(self, target):
        self.generate(target, self.draft(vocab_size=512), "vocabulary of 320", "512", "trained for org/trained-for")

    def test_another_width(self, target):
        draft = self.draft(target_hidden_size=96, own_embed_tokens=True, draft_vocab_size=80)
        self.generate(target, draft, "hidden states of size 64", "size 96", "trained for org/trained-for")

    def test_a_layer_that_the_target_does_not_have(self, target):
        self.generate(target, self.draft(feature_layer_ids=[2, 9, 40]), "[2, 9, 40]", "belongs to another target")

    def test_a_target_without_the_output_embedding_that_the_head_needs(self, target, monkeypatch):
        monkeypatch.setattr(target, "get_output_embeddings", lambda: None)
        draft = self.draft(eagle_version=1)
        self.generate(target, draft, "has no `lm_head` of its own and needs the target's")

    def test_another_target_of_the_same_shape_is_a_warning(self, tmp_path, caplog):
        shutil.copytree(GOLDEN / "targets" / "A", tmp_path / "fine-tuned")
        target = AutoModelForCausalLM.from_pretrained(tmp_path / "fine-tuned")
        draft = EagleDraftModel.from_pretrained(GOLDEN / "drafts" / "A_eagle3")
        for name, warnings in (("elsewhere/Fine-Tuned", 0), ("org/original", 1)):
            draft.config.base_model_name_or_path = name
            for _ in range(2):  # once only
                target.generate(torch.tensor([[3, 4, 5]]), assistant_model=draft, max_new_tokens=2)
            messages = [record.getMessage() for record in caplog.records if "was trained for" in record.getMessage()]
            assert len(messages) == warnings
        assert "trained for org/original, and the target is" in messages[0]
