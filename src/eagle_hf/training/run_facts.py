"""Describes what a run of the trainer has done, in the fields of its record."""

from typing import Any

import torch
from transformers import Trainer

from .arguments import EagleTrainingArguments


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """
    Returns what a trainer knows of its run, as fields of [`~eagle_hf.hub.TrainingFacts`]: over all pieces of a run that
    was interrupted, with the defaults that were in use, and without paths of this machine.
    """
    args, state, progress = trainer.args, trainer.state, trainer.progress
    is_eagle1 = trainer.model.config.eagle_version == 1
    planned = {"max_steps": args.max_steps} if args.max_steps > 0 else {"num_train_epochs": args.num_train_epochs}
    dtype = str(trainer.model.dtype).removeprefix("torch.")
    optim = "muon and adamw" if args.muon_learning_rate is not None else args.optim
    hyperparameters = {
        "learning_rate (peak)": args.learning_rate,
        "muon_learning_rate (peak)": args.muon_learning_rate,
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warmup_steps": args.get_warmup_steps(max(state.max_steps, 1)),
        **planned,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "processes": args.world_size,
        "num_unrolls": args.num_unrolls or (1 if is_eagle1 else 7),
        "unroll_decay": args.unroll_decay if args.unroll_decay is not None else (1.0 if is_eagle1 else 0.8),
        "loss": args.loss,
        "feature_noise": trainer.feature_noise,
        "optim": str(getattr(optim, "value", optim)),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "precision": "bfloat16 (autocast)" if args.bf16 else "float16 (autocast)" if args.fp16 else dtype,
    }
    logged: dict[str, float] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    length = logged.get("simulated_acceptance_length")
    return {
        "command": "# from Python: EagleTrainer.train()",
        "data": f"{progress.num_trained_tokens:,} tokens were trained, given as a dataset.",
        "hyperparameters": {name: value for name, value in hyperparameters.items() if value is not None},
        "seed": args.seed,
        "hardware": _hardware(args),
        "hours": round(progress.seconds / 3600, 5),
        "num_starts": progress.num_starts,
        "steps": state.global_step,
        "epochs": round(float(state.epoch or 0), 4),
        "num_tokens": progress.num_tokens,
        "num_trained_tokens": progress.num_trained_tokens,
        "longest": progress.longest,
        "last_logged_loss": logged.get("loss"),
        "mean_loss": round(progress.total_loss / max(state.global_step, 1), 6),
        "final_metrics": {} if length is None else {"simulated acceptance length": length},
    }


def _hardware(args: EagleTrainingArguments) -> str:
    if args.device.type != "cuda":
        return args.device.type.upper() if args.world_size == 1 else f"{args.world_size} x {args.device.type.upper()}"
    return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
