"""
Every option that `EagleTrainingArguments` has is known here: it trains, it leaves training alone, or it is refused
before training starts. A new version of `transformers` with a new option makes this fail until someone looked at it.
"""

import dataclasses
import math

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from target_dtype import TARGET_DTYPE
from tiny_training import make_trainer

from eagle_hf.training import EagleTrainer, EagleTrainingArguments


OPTIONS = {option.name for option in dataclasses.fields(EagleTrainingArguments) if option.init}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in OPTIONS else "gradient_checkpointing"

# Runs that together set what plausibly breaks; each must train. The sweep sets the options one by one.
RUNS = {
    "lengths, evaluation": {
        "train_sampling_strategy": "group_by_length", "length_column_name": "length", "dataloader_drop_last": True,
        "eval_strategy": "steps", "eval_steps": 1, "eval_accumulation_steps": 1, "prediction_loss_only": True,
        "eval_on_start": True, "eval_do_concat_batches": False, "include_num_input_tokens_seen": "all",
        "save_strategy": "steps", "save_steps": 2, "save_only_model": True, "max_grad_norm": 0.0, "optim": "adafactor",
        "remove_unused_columns": True, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 2,
        "torch_empty_cache_steps": 1, "eval_delay": 1, "logging_first_step": True, "per_device_eval_batch_size": 3,
    },
    "scheduler, checkpointing": {
        "train_sampling_strategy": "batch_rebalance", "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "steps", "eval_steps": 1, "muon_learning_rate": 1e-3, CHECKPOINTING: True,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}, "debug": "underflow_overflow", "adam_epsilon": 1e-7,
        "average_tokens_across_devices": False, "fp16": True,
        "gradient_accumulation_steps": 2, "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.99,
        "use_cache": True,
    },
    "order, best": {
        "train_sampling_strategy": "sequential", "load_best_model_at_end": True, "metric_for_best_model": "accuracy_1",
        "greater_is_better": True, "eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2,
        "max_steps": -1, "lr_scheduler_type": "cosine", "warmup_steps": 1, "optim": "sgd", "save_total_limit": 1,
        "data_seed": 3, "seed": 4, "bf16": True, "logging_strategy": "epoch", "num_unrolls": 2, "unroll_decay": 0.5,
        "loss": "kl", "feature_noise": 0.1, "ignore_data_skip": True, "accelerator_config": {"split_batches": True},
    },
}  # fmt: skip

REFUSED = {
    "label_smoothing_factor": 0.1, "label_names": ["labels"], "neftune_noise_alpha": 5.0, "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True}, "torch_compile": True, "torch_compile_backend": "eager",
    "torch_compile_mode": "default", "fp16_full_eval": True, "bf16_full_eval": True, "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True, "parallelism_config": object(),
}  # fmt: skip

# What `transformers` or `accelerate` refuses itself where hardware, processes or a package are missing.
NEEDS = {"tf32": True, "fsdp": True, "deepspeed": {"zero_optimization": {"stage": 2}}}

# Tested elsewhere: several processes, saving, killing and resuming, the Hub, checkpointing, EAGLE-1.
ELSEWHERE = {
    "output_dir", "per_device_train_batch_size", "learning_rate", "ddp_backend", "use_cpu",
    "resume_from_checkpoint", "push_to_hub", "hub_model_id", "feature_loss_weight", "logit_loss_weight",
    "disable_tqdm", "report_to", "logging_steps", "fsdp_config", "auto_find_batch_size",
}  # fmt: skip

# Handed on to loggers, the Hub, the loader of batches, signals or processes; the objective does not meet them.
LEAVE_TRAINING_ALONE = {
    "lr_scheduler_kwargs", "optim_args", "optim_target_modules", "log_on_each_node", "logging_nan_inf_filter",
    "log_level", "log_level_replica", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "eval_use_gather_object", "save_on_each_node", "enable_jit_checkpoint", "hub_token",
    "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint",
    "full_determinism", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_multiprocessing_context",
    "dataloader_in_order", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_timeout", "skip_memory_metrics", "do_train", "do_eval", "do_predict", "local_rank",
}  # fmt: skip


def test_every_option_is_known():
    trains = set().union(*RUNS.values())
    groups = [trains, set(REFUSED), set(NEEDS), ELSEWHERE, LEAVE_TRAINING_ALONE]
    known = set().union(*groups)
    older = {
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "past_index",
        "group_by_length", "warmup_ratio", "logging_dir", "save_safetensors", "jit_mode_eval",
    }  # fmt: skip
    assert OPTIONS - known - older == set(), "new options: do they train?"
    assert sum(map(len, groups)) == len(known)  # each in one group


def trains(tmp_path, **options):
    target = tiny_target("llama")
    truth = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    draft = random_draft(target, initializer_range=0.05)
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    options = {name: value for name, value in options.items() if name in OPTIONS}
    trainer = make_trainer(
        tmp_path, target, draft,
        **({"num_samples": 8, "max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1} | options),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step >= 2
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in draft.state_dict().items())
    assert all(torch.equal(tensor, truth[name]) for name, tensor in target.state_dict().items())
    assert draft.dtype == TARGET_DTYPE
    assert "main_input_name" not in vars(draft)
    return trainer


@pytest.mark.parametrize("run", RUNS)
def test_options_train(tmp_path, run):
    if "muon_learning_rate" in RUNS[run] and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    trainer = trains(tmp_path, **RUNS[run])
    if "include_num_input_tokens_seen" in RUNS[run]:
        assert trainer.state.num_input_tokens_seen == 2 * 4 * 20
    if "load_best_model_at_end" in RUNS[run]:
        assert trainer.args.metric_for_best_model == "accuracy_1"
        assert trainer.state.best_metric is not None


_SET_TOGETHER = {"dataloader_prefetch_factor", "load_best_model_at_end", "eval_strategy", "save_strategy", "eval_steps",
                 "metric_for_best_model", "greater_is_better", "max_steps", f"{CHECKPOINTING}_kwargs"}  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for run in RUNS.values() for n, v in run.items() if n not in _SET_TOGETHER]
)
def test_options_train_one_by_one(tmp_path, name, value):
    trains(tmp_path, **{"eval_strategy": "steps", "eval_steps": 1, name: value})


def test_a_batch_that_does_not_fit_the_memory_is_halved(tmp_path, monkeypatch):
    compute, sizes = EagleTrainer.compute_loss, []

    def out_of_memory(self, model, inputs, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory.")
        return compute(self, model, inputs, **kwargs)

    monkeypatch.setattr(EagleTrainer, "compute_loss", out_of_memory)
    trains(tmp_path, auto_find_batch_size=True)
    assert sizes[0] == 4
    assert sizes[-1] <= 2


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_train_are_refused_at_the_door(tmp_path, name):
    if name not in OPTIONS:
        pytest.skip("not in this version of transformers")
    with pytest.raises(ValueError, match=f"`{name}=.*Leave it out"):
        EagleTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: REFUSED[name]})


def test_the_same_options_at_their_defaults_are_not(tmp_path):
    """Negative control."""
    defaults = {option.name: option.default for option in dataclasses.fields(EagleTrainingArguments)
                if option.name in REFUSED and option.default is not dataclasses.MISSING}  # fmt: skip
    EagleTrainingArguments(output_dir=str(tmp_path), use_cpu=True, include_for_metrics=[], **defaults)


@pytest.mark.parametrize("name", NEEDS)
def test_options_that_need_something_else_are_refused_without_it(tmp_path, name):
    target = tiny_target("llama")
    with pytest.raises((ValueError, ImportError)):
        make_trainer(tmp_path, target, random_draft(target), num_samples=4, **{name: NEEDS[name]})


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"every_n_layers": 2}, {"use_reentrant": False, "x": 1}])
def test_ways_of_checkpointing_that_would_change_nothing_are_refused(tmp_path, options):
    settings = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": options}
    with pytest.raises(ValueError, match="every unroll is checkpointed"):
        EagleTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    "options", [{"optim": "sgd"}, {"optim_args": "momentum=0.9"}, {"optim": "adafactor", "optim_args": "x=1"}]
)
def test_muon_and_another_optimizer_exclude_each_other(tmp_path, options):
    with pytest.raises(ValueError, match="exclude each other"):
        EagleTrainingArguments(output_dir=str(tmp_path), use_cpu=True, muon_learning_rate=1e-3, **options)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "galore_adamw", "lomo", "schedule_free_adamw"])
def test_optimizers_of_packages_that_are_missing_are_refused_before_the_first_step(tmp_path, optim):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), num_samples=4, max_steps=1, optim=optim,
                           optim_target_modules="all-linear" if optim.startswith("galore") else None)  # fmt: skip
    with pytest.raises(ImportError, match="nstall"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("argument", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_functions_that_would_never_be_called_are_refused(tmp_path, argument):
    target = tiny_target("llama")
    with pytest.raises(ValueError, match=f"`{argument}` would not be called"):
        EagleTrainer(random_draft(target), target, EagleTrainingArguments(output_dir=str(tmp_path), use_cpu=True),
                     **{argument: lambda *args: None})  # fmt: skip


def test_a_metric_that_no_evaluation_has_is_refused_before_training(tmp_path):
    target = tiny_target("llama")
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "num_samples": 4}
    with pytest.raises(ValueError, match="`metric_for_best_model='accuracy'` is none of.*accuracy_0"):
        make_trainer(tmp_path, target, random_draft(target), metric_for_best_model="accuracy", **settings)
    for metric in ("loss", "eval_accepted_at_depth_3", None):
        trainer = make_trainer(tmp_path, target, random_draft(target), metric_for_best_model=metric, **settings)
        assert trainer.args.metric_for_best_model == (metric or "simulated_acceptance_length")
        assert trainer.args.greater_is_better == (metric != "loss")
