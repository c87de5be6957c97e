"""Every objective trains on targets of every dtype and placement, with and without `bf16`; the head stays float32."""

import accelerate
import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from pretended_devices import device_of, pretended_gpus, put, spread
from tiny_training import make_trainer
from transformers import TrainerCallback

from eagle_hf.training import (
    LOSSES,
    EagleTrainer,
    EagleTrainingArguments,
    FeatureStore,
    FrozenTarget,
    feature_regression_loss,
    new_head,
    pad_features,
    training_time_test_loss,
    write_features,
)


CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS = {
    "eagle-3": {"feature_layer_ids": [0, 1, 2]},
    "eagle-1": {"eagle_version": 1},
    "eagle-1 with an lm_head of its own": {"eagle_version": 1, "draft_vocab_size": 40},
    "no lm_head": {"feature_layer_ids": [0, 1, 2], "draft_vocab_size": None},
}


def train(tmp_path, target, head, **arguments):
    """Two steps; the loss of both."""
    settings = {"max_steps": 2, "logging_steps": 1, "num_unrolls": 2, "learning_rate": 1e-3}
    trainer = make_trainer(tmp_path, target, head, num_samples=16, **(settings | arguments))
    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    changed = [name for name, parameter in head.named_parameters() if not torch.equal(parameter, before[name])]
    assert "fc.weight" in changed
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in target.parameters())
    return losses


CASES = [(head, dtype, bf16) for head in HEADS for dtype in DTYPES for bf16 in (False, True)]
ALWAYS = [
    ("eagle-3", torch.bfloat16, False), ("eagle-1", torch.float16, True), ("eagle-1", torch.bfloat16, False),
    ("eagle-1 with an lm_head of its own", torch.bfloat16, False),
    ("no lm_head", torch.float16, False), ("eagle-3", torch.float16, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "dtype", "bf16"),
    [pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.sweep) for case in CASES],
)
def test_every_dtype(tmp_path, head, dtype, bf16):
    target = tiny_target("llama").to(dtype)
    train(tmp_path, target, new_head(target, **HEADS[head]), bf16=bf16)
    assert target.dtype == dtype


@pytest.mark.sweep
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["phi", "gemma3-mixed", "gpt2-learned-positions", "mixtral-moe", "llama-tied"])
def test_other_families_in_half_precision(tmp_path, name, head):
    """With a bias on the `lm_head`, scaled embeddings, learned positions, experts, tied embeddings."""
    target = tiny_target(name).to(torch.bfloat16)
    train(tmp_path, target, new_head(target, **HEADS[head]))


@pytest.mark.sweep
@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"cross_entropy"}))
def test_every_loss(tmp_path, loss):
    target = tiny_target("llama").to(torch.bfloat16)
    train(tmp_path, target, new_head(target, **HEADS["eagle-3"]), loss=loss)


def offloaded(kind, folder):
    target = tiny_target("llama")
    if kind == "cpu_offload":
        return accelerate.cpu_offload(target, execution_device=CPU)
    if kind == "disk_offload":
        return accelerate.disk_offload(target, str(folder), execution_device=CPU)
    places = dict.fromkeys(("model.layers", "model.norm", "model.rotary_emb"), "cpu")
    places |= {"model.embed_tokens": kind, "lm_head": kind}
    return accelerate.dispatch_model(target, places, main_device="cpu", offload_dir=str(folder))


PLACES = [(kind, head) for kind in ("cpu_offload", "disk_offload", "disk") for head in HEADS]


@pytest.mark.parametrize(
    ("kind", "head"),
    [pytest.param(*case, marks=[] if i in (1, 4, 11) else pytest.mark.sweep) for i, case in enumerate(PLACES)],
)
def test_offloaded_targets(tmp_path, kind, head):
    """As with the same target in memory, the weights that the head starts from included."""
    torch.manual_seed(0)
    expected_head = new_head(tiny_target("llama"), **HEADS[head])
    target = offloaded(kind, tmp_path / "weights")
    torch.manual_seed(0)
    got_head = new_head(target, **HEADS[head])
    expected, got = dict(expected_head.named_parameters()), dict(got_head.named_parameters())
    assert all(torch.equal(expected[name], parameter) for name, parameter in got.items())
    losses = train(tmp_path / "run", target, got_head)
    assert losses == pytest.approx(train(tmp_path / "run2", tiny_target("llama"), expected_head))


def objective_of(head):
    return feature_regression_loss if head.config.eagle_version == 1 else training_time_test_loss


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("place", ["cuda:0", "cuda:1"])
def test_targets_spread_over_two_devices(head, place):
    """The head on either of them."""
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))

    def loss(target, draft, ids, device):
        frozen = FrozenTarget(target, draft.config, device)
        signal = frozen.read({"input_ids": ids})
        modules = {"embed_tokens": frozen.embed_tokens, "lm_head": frozen.lm_head, "num_steps": 2}
        if draft.config.eagle_version == 3:
            modules["target_logits"] = signal.logits
        output = objective_of(draft)(draft, signal.features, ids, loss_mask=torch.ones_like(ids), **modules)
        output.loss.backward()
        return output.loss

    torch.manual_seed(0)
    expected = loss(tiny_target("llama"), new_head(tiny_target("llama"), **HEADS[head]), ids, CPU)
    with pretended_gpus():
        target = spread(tiny_target("llama"))
        torch.manual_seed(0)
        draft = new_head(target, **HEADS[head]).to(place)
        got = loss(target, draft, put(ids.clone(), place), torch.device(place))
        assert device_of(got) == place
    assert got.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("head", ["eagle-3", "eagle-1"])
def test_stored_features_of_another_dtype(tmp_path, head):
    target = tiny_target("llama").to(torch.bfloat16)
    draft = new_head(target, **HEADS[head])
    ids = torch.randint(3, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row, "loss_mask": torch.ones_like(row)} for row in ids]
    frozen = FrozenTarget(target, draft.config, CPU)
    write_features(frozen, samples, tmp_path / "features", dtype=torch.float16)
    arguments = EagleTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", save_strategy="no", max_steps=2,
        per_device_train_batch_size=4, num_unrolls=2, disable_tqdm=True,
    )  # fmt: skip
    store = FeatureStore(tmp_path / "features", frozen.feature_layer_ids)
    EagleTrainer(draft, target, arguments, train_dataset=store, data_collator=pad_features).train()


@pytest.mark.parametrize("head", ["eagle-3", "eagle-1"])
def test_acceptance_may_be_measured_between_two_steps(tmp_path, head):
    """On a target of another dtype. The weights are, bit by bit, those of a training without."""

    class Measure(TrainerCallback):
        lengths: list = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            output = target.generate(
                torch.tensor([[5, 17, 40]]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0,
                assistant_model=model, return_dict_in_generate=True,
            )  # fmt: skip
            self.lengths.append(output.acceptance_lengths)
            assert model.training

    target, heads = tiny_target("llama").to(torch.bfloat16), []
    for callbacks in ([], [Measure()]):
        torch.manual_seed(0)
        heads.append(use_options(new_head(target, **HEADS[head]), draft_tree="chain", num_assistant_tokens=2))
        trainer = make_trainer(tmp_path, target, heads[-1], num_samples=16, max_steps=3, num_unrolls=2)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
    assert len(Measure.lengths) == 3
    without, measured = (dict(each.named_parameters()) for each in heads)
    assert all(torch.equal(without[name], parameter) for name, parameter in measured.items())
