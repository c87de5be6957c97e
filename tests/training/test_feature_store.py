"""Stored features train the head that features of the same process train, and what is damaged is found."""

import json

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf.training import EagleTrainer, EagleTrainingArguments, FeatureStore, FrozenTarget, write_features
from eagle_hf.training import feature_store as module
from eagle_hf.training.feature_store import pad_features, stored_bytes


LAYERS = [0, 1, 2]


@pytest.fixture
def target():
    return tiny_target("llama")


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    lengths = [12, 7, 9, 12, 5, 11, 8]
    return [
        {"input_ids": torch.randint(3, 90, (n,), generator=generator), "loss_mask": torch.ones(n, dtype=torch.long)}
        for n in lengths
    ]


def frozen(target, layers=LAYERS):
    return FrozenTarget(target, random_draft(target, feature_layer_ids=layers).config, torch.device("cpu"))


def trained(target, dataset, collator, tmp_path, **fields):
    arguments = EagleTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", max_steps=4, disable_tqdm=True,
        per_device_train_batch_size=4, num_unrolls=2, learning_rate=1e-2,
    )  # fmt: skip
    trainer = EagleTrainer(
        random_draft(target, **fields), target, arguments, train_dataset=dataset, data_collator=collator
    )
    trainer.train()
    return trainer.model.state_dict()


def test_stored_features_train_the_same_head(tmp_path, target, samples):
    write_features(frozen(target), samples, tmp_path / "features", samples_per_shard=3)
    store = FeatureStore(tmp_path / "features", LAYERS)
    assert len(store) == len(samples)
    stored = trained(target, store, pad_features, tmp_path)
    online = trained(target, samples, pad_features, tmp_path)
    for name, tensor in online.items():
        torch.testing.assert_close(stored[name], tensor, atol=1e-5, rtol=1e-4)


def test_interrupted_computing_goes_on(tmp_path, target, samples, monkeypatch):
    write_features(frozen(target), samples, tmp_path / "whole", samples_per_shard=2)
    computed, compute = [], module._compute

    def interrupted(target, sample, dtype, is_checked):
        computed.append(1)
        if len(computed) == 4:
            raise KeyboardInterrupt
        return compute(target, sample, dtype, is_checked)

    monkeypatch.setattr(module, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_features(frozen(target), samples, tmp_path / "parts", samples_per_shard=2)
    with pytest.raises(ValueError, match="1 of 4 shards"):
        FeatureStore(tmp_path / "parts", LAYERS)
    write_features(frozen(target), samples, tmp_path / "parts", samples_per_shard=2)
    assert len(computed) == 4 + 5  # the first shard was not computed again
    whole, parts = FeatureStore(tmp_path / "whole", LAYERS), FeatureStore(tmp_path / "parts", LAYERS)
    for i in range(len(samples)):
        assert all(torch.equal(tensor, parts[i][name]) for name, tensor in whole[i].items())


def test_other_samples_layers_or_targets_are_refused(tmp_path, target, samples):
    write_features(frozen(target), samples, tmp_path, samples_per_shard=4)
    with pytest.raises(ValueError, match=r"other features \(.*ids"):
        write_features(frozen(target), samples[::-1], tmp_path, samples_per_shard=4)
    with pytest.raises(ValueError, match=r"features of `hidden_states` \[0, 1, 2\], but the head reads \[1, 2\]"):
        FeatureStore(tmp_path, [1, 2])


def test_a_damaged_shard_is_named(tmp_path, target, samples):
    write_features(frozen(target), samples, tmp_path, samples_per_shard=4)
    shard = tmp_path / "features-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    store = FeatureStore(tmp_path, LAYERS)
    assert store[0]["features"].shape == (12, 3 * 32)
    with pytest.raises(OSError, match="features-00001.safetensors is damaged"):
        store[4]
    shard.write_bytes(content[:-1])
    with pytest.raises(OSError, match=r"features-00001.safetensors is \d+ bytes, expected"):
        FeatureStore(tmp_path, LAYERS)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(OSError, match="index.json cannot be read"):
        FeatureStore(tmp_path, LAYERS)


def test_a_target_whose_logits_are_no_plain_lm_head_is_refused(tmp_path, samples):
    target = tiny_target("gemma2-softcap")
    target.config.final_logit_softcapping = 0.1
    with pytest.raises(ValueError, match="are not its `lm_head`"):
        write_features(frozen(target), samples, tmp_path)


def test_the_size_on_disk_is_what_was_announced(tmp_path, target, samples):
    write_features(frozen(target), samples, tmp_path, dtype=torch.bfloat16)
    announced = stored_bytes(sum(len(s["input_ids"]) for s in samples), 3, 32, torch.bfloat16)
    index = json.loads((tmp_path / "index.json").read_text())
    stored = sum(shard["bytes"] for shard in index["shards"])
    ids_and_header = 16 * sum(len(s["input_ids"]) for s in samples) + 8192
    assert announced < stored < announced + ids_and_header
    assert FeatureStore(tmp_path, LAYERS)[2]["features"].dtype == torch.bfloat16
