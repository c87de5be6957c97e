"""
Identifies a run: by the texts that are trained, the target, the recipe and its schedule. A run goes on, or has
finished, where these are the same. Paths, dates, and what only watches, stores or speeds up a run are no part of it.
"""

import dataclasses
import enum
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .arguments import EagleTrainingArguments


# Every field of `EagleTrainingArguments` is in one of these three sets; one that is in none, of a newer `transformers`,
# counts as identifying.
IDENTIFYING = frozenset({
    # batches and their order
    "per_device_train_batch_size", "auto_find_batch_size", "seed", "data_seed", "dataloader_drop_last",
    "dataloader_in_order", "train_sampling_strategy", "length_column_name", "ignore_data_skip", "accelerator_config",
    # the optimizer and its schedule
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "muon_learning_rate", "average_tokens_across_devices",
    # the objective
    "num_unrolls", "unroll_decay", "loss", "feature_loss_weight", "logit_loss_weight", "feature_noise",
    "label_smoothing_factor", "neftune_noise_alpha", "label_names",
    # precision, and what replaces modules
    "bf16", "fp16", "tf32", "use_liger_kernel", "liger_kernel_config",
    # how weights and optimizer are laid out in a checkpoint
    "fsdp", "fsdp_config", "deepspeed", "parallelism_config",
    # which weights are kept in the end
    "load_best_model_at_end",
})  # fmt: skip

# Identify a run only where something goes by them; see `identity_of_settings`.
CONDITIONAL = frozenset({
    "max_steps", "num_train_epochs", "gradient_accumulation_steps", "metric_for_best_model", "greater_is_better",
})  # fmt: skip

HARMLESS = frozenset({
    # places and names
    "output_dir", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "report_to", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "push_to_hub", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    # logs
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "debug", "skip_memory_metrics",
    # checkpoints
    "save_strategy", "save_steps", "save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint",
    # evaluation
    "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only", "eval_on_start",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
    "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "do_train", "do_eval", "do_predict",
    # how the same numbers are computed
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache",
    "torch_empty_cache_steps", "full_determinism", "use_cpu", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "remove_unused_columns", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank",
})  # fmt: skip

# Their learning rate at a step does not depend on how many steps are to follow.
_OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")


def identity_of_settings(
    args: EagleTrainingArguments, num_samples: int | None = None, draws_noise: bool = False
) -> dict[str, Any]:
    """
    Returns the training arguments that identify a run, ready for JSON.

    Args:
        args ([`EagleTrainingArguments`]): The arguments.
        num_samples (`int`, *optional*): Samples of an epoch, where they can be counted.
        draws_noise (`bool`): Whether training draws random numbers: in another number of processes these are others.

    How long a run is to be belongs to it where the learning rate follows from that. Processes and accumulation stand
    for one another where batches come out the same.
    """
    names = {field.name for field in dataclasses.fields(args)} - HARMLESS - CONDITIONAL
    identity = {name: _plain(getattr(args, name)) for name in sorted(names)}
    if not is_open_ended(args):
        identity |= horizon(args)
    if args.load_best_model_at_end:
        identity |= {name: _plain(getattr(args, name)) for name in ("metric_for_best_model", "greater_is_better")}
    samples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if num_samples is not None and num_samples % samples_per_step == 0 and not draws_noise:
        identity["samples_per_step"] = samples_per_step
    else:
        identity |= {"world_size": args.world_size, "gradient_accumulation_steps": args.gradient_accumulation_steps}
    return identity


def is_open_ended(args: EagleTrainingArguments) -> bool:
    """Checks whether a run may be made longer without changing what was trained so far."""
    has_ratio = 0 < float(args.warmup_steps or 0) < 1 or float(getattr(args, "warmup_ratio", 0) or 0) > 0
    return _plain(args.lr_scheduler_type) in _OPEN_ENDED and not has_ratio


def horizon(args: EagleTrainingArguments) -> dict[str, Any]:
    """Returns how long a run is to be."""
    return {"max_steps": args.max_steps} if args.max_steps > 0 else {"num_train_epochs": args.num_train_epochs}


def identity_of_data(dataset: Any) -> str | None:
    """
    Returns a digest of the texts that are trained, in their order, and of which tokens of them are trained.

    Args:
        dataset (sequence of `dict`):
            Samples with `input_ids` and `loss_mask`, or stored features. `None` is returned for what cannot be counted,
            such as a stream.
    """
    stored = getattr(dataset, "settings", None)
    if isinstance(stored, Mapping) and "ids" in stored:
        return stored["ids"]
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for i in range(len(dataset)):
        sample = dataset[i]
        digest.update(len(sample["input_ids"]).to_bytes(8, "big"))
        for name in ("input_ids", "loss_mask", "document_ids"):
            if name in sample:
                values = torch.as_tensor(sample[name]).to(torch.int32)
                digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity_of_weights(model: nn.Module) -> str:
    """
    Tells the weights of two models of one shape apart, wherever they are and whatever their folder is called: names,
    shapes, dtypes and some values of every tensor.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(_tensors(model), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        if type(tensor) is torch.Tensor and tensor.layout == torch.strided and not tensor.is_meta:
            flat = tensor.flatten()
            digest.update(str(flat[:: max(flat.numel() // 16, 1)][:16].double().tolist()).encode())
    return digest.hexdigest()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """
    Returns in words what differs between two identities; empty where they are of the same run.

    An argument that `saved` does not have, since it is of an older version, is taken to have had its default.
    """
    defaults = {
        field.name: _plain(field.default)
        for field in dataclasses.fields(EagleTrainingArguments)
        if field.default is not dataclasses.MISSING
    }
    found = []
    for name in sorted(saved.keys() | now.keys()):
        before, after = (known[name] if name in known else defaults.get(name) for known in (saved, now))
        if before == after:
            continue
        if name in _WORDS and before is not None and after is not None:
            found.append(_WORDS[name])
        else:
            found.append(f"`{name}` {before!r}, now {after!r}")
    return found


_WORDS = {
    "data": "the data (other texts, another order, or other tokens of them trained)",
    "eval_data": "the data for evaluation, by which the best head is chosen",
    "target": "the target (other weights, or another dtype)",
    "head": "the head that training starts from",
}


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, parameter in (*module._parameters.items(), *module._buffers.items()):
            if parameter is None or (name in module._buffers and name in module._non_persistent_buffers_set):
                continue
            tensor = parameter.data
            if tensor.is_meta:  # offloaded: a hook knows where to
                tensor = _offloaded(module, name, tensor)
            yield f"{prefix}.{name}", tensor


def _offloaded(module: nn.Module, name: str, otherwise: torch.Tensor) -> torch.Tensor:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        weights = getattr(one, "weights_map", None)
        if weights is not None and name in weights:
            return torch.as_tensor(weights[name]).data
    return otherwise


def _plain(value: Any) -> Any:
    """Returns a value as JSON holds it; files of settings are taken for what they say, not where they are."""
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, str | os.PathLike) and str(value).endswith(".json") and Path(value).is_file():
        value = json.loads(Path(value).read_text(encoding="utf-8"))
    return json.loads(json.dumps(value, default=str, sort_keys=True))
