"""Training a head with [`~transformers.Trainer`]."""

import os
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, SchedulerType, TrainOutput
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from ..generation.pairing import check_pair
from ..head.modeling_eagle import EagleDraftModel
from ..target.config import position_limit
from . import durable_checkpoints, run_identity
from .arguments import EagleTrainingArguments
from .frozen_target import FrozenTarget, TargetSignal
from .head_in_training import HeadInTraining
from .losses import LOSSES
from .muon import MuonAndAdamW
from .objective import Figures, ObjectiveOutput, rows_that_draft
from .objectives.eagle1 import feature_regression_loss
from .objectives.eagle3 import training_time_test_loss
from .packing_check import check_packing
from .progress import Progress, ProgressCounter, as_dict
from .publishing_trainer import PublishingTrainer
from .text_lengths import check_batch, check_lengths


logger = logging.get_logger(__name__)

# Arguments of `Trainer` that it would call, and this does not.
_UNUSED = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")
# Fields of a head's configuration that say nothing of its weights.
_NAMES_IN_CONFIG = {"base_model_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"}


class EagleTrainer(PublishingTrainer):
    """
    Trains a head against a frozen target in the same process: EAGLE-3 heads by training-time test, EAGLE-1 heads by
    regression of features.

    Logs and evaluation report the accuracy of every unroll, from how many positions a greedy chain is accepted to every
    depth, and the acceptance length that follows. Checkpoints are complete or absent, whenever the process ends.

    Args:
        model ([`EagleDraftModel`]): The head. Its embedding, and in EAGLE-1 its `lm_head`, are copies of the target's
            and stay as they are.
        target ([`~transformers.PreTrainedModel`]): The target. It is never changed.
        args ([`EagleTrainingArguments`]): Training arguments.
        kwargs: Further arguments of [`~transformers.Trainer`]. Batches hold `input_ids`, `loss_mask` (1 where the
            target generates the token, see [`rows_that_draft`]) and, where there are any, `attention_mask` (padding),
            `document_ids` and `position_ids` (packed texts), or `features` and `last_hidden_states` (computed before),
            all of shape `(batch_size, seq_len, ...)`.

    Raises:
        `ValueError`: if head and target do not fit each other, or texts are longer than the target has positions.
    """

    def __init__(
        self, model: EagleDraftModel, target: PreTrainedModel, args: EagleTrainingArguments | None = None, **kwargs: Any
    ):
        check_pair(target, model)
        if model.config.parallel_drafting:
            raise ValueError("P-EAGLE heads, which draft a chain in one forward, can be loaded but not trained here.")
        if given := [name for name in _UNUSED if kwargs.get(name) is not None]:
            raise ValueError(
                f"`{'`, `'.join(given)}` would not be called: the objective and the figures of evaluation are those of "
                "a head. To change them, override `compute_loss` or `evaluation_loop`."
            )
        args = args if args is not None else EagleTrainingArguments()
        args.remove_unused_columns = False  # the columns are those of `compute_loss`, not of the head's `forward`
        args._n_gpu = min(args.n_gpu, 1)  # no `nn.DataParallel`: further devices are for the target or other processes
        if model.embed_tokens is not None:
            model.embed_tokens.requires_grad_(False)
        if model.config.eagle_version == 1 and model.lm_head is not None:
            model.lm_head.requires_grad_(False)
        super().__init__(model=HeadInTraining(model), args=args, **kwargs)
        self.target = FrozenTarget(target, model.config, self.args.device)
        self._check_best_metric()
        self._position_limit = position_limit(target)
        check_lengths(self.target, self.train_dataset)
        for dataset in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
            check_lengths(self.target, dataset)
        self._staging: Path | None = None
        self._figures = Figures()
        self.model_accepts_loss_kwargs = True  # the loss is divided by the trained rows of all batches of a step
        self.progress = self._resumed = Progress()
        self.identity: dict[str, Any] = {}  # what else identifies the run
        self.facts_of_run: dict[str, Any] = {}  # what else its checkpoints record
        self._counter: ProgressCounter | None = None
        self._identities: dict[str, tuple[Any, str | None]] = {}
        self.add_callback(_CountFromHere(self))

    def _check_best_metric(self) -> None:
        """Refuses a metric that no evaluation has, before the first evaluation does."""
        args, metric = self.args, self.args.metric_for_best_model
        wants_metric = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
        if not wants_metric and args.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU:
            return
        unrolls = range(self._num_unrolls)
        names = ["loss", "simulated_acceptance_length", *(f"accuracy_{i}" for i in unrolls)]
        names += [f"accepted_at_depth_{i + 1}" for i in unrolls]
        sets = [f"{name}_" for name in self.eval_dataset] if isinstance(self.eval_dataset, dict) else [""]
        names = [prefix + name for prefix in sets for name in names]
        if str(metric).removeprefix("eval_") not in names:
            raise ValueError(f"`metric_for_best_model={metric!r}` is none of what is evaluated: {', '.join(names)}.")

    @property
    def _num_unrolls(self) -> int:
        return self.args.num_unrolls or (1 if self.model.config.eagle_version == 1 else 7)

    # ------------------------------------------------------------------ objective

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """Takes the batches of one step, and counts the rows that they train, in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [rows_that_draft(batch["loss_mask"], _documents(batch)).sum() for batch in batches]
        if not counts:
            return batches, None
        num_trained = torch.stack(counts).sum().to(device)
        if self._averages_over_processes:
            num_trained = self.accelerator.reduce(num_trained, "sum")
        return batches, num_trained

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Returns the features and logits of the target, then the loss of the head.

        Args:
            num_items_in_batch (`int` or `torch.Tensor` of shape `()`, *optional*):
                Trained rows of all batches of a step, by which the loss is divided; those of this batch by default.

        Raises:
            `FloatingPointError`: if the loss is not finite; the weights are still those before this batch.
            `ValueError`: if texts are packed and the target mixes them.
        """
        target = self.target.read(self._checked(inputs))
        result = model(objective=partial(self._objective, inputs, target, num_items_in_batch))
        loss = result.loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step + 1} is {float(loss.detach())}. {self._last_good()} "
                "A lower learning rate, a longer warm-up, or bfloat16 instead of float16 helps in most cases."
            )
        self._figures.add(result)
        if num_items_in_batch is not None and self._averages_over_processes:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, and losses logged so
        return (loss, result) if return_outputs else loss

    def _checked(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns what the target is to read, if it can."""
        check_batch(self.target.model, self._position_limit, inputs)
        if "features" in inputs or "document_ids" not in inputs:
            return inputs
        if inputs.get("position_ids") is None:
            raise ValueError(
                "The batch has `document_ids` and no `position_ids`: a target keeps packed texts apart by positions "
                "that start again with each. `PackedCollator` makes both."
            )
        check_packing(self.target, len(inputs["input_ids"]))
        return {name: values for name, values in inputs.items() if name != "attention_mask"}  # it would mix them

    @property
    def _averages_over_processes(self) -> bool:
        return self.args.average_tokens_across_devices and self.accelerator.num_processes > 1

    def _objective(
        self,
        inputs: dict[str, Any],
        target: TargetSignal,
        num_trained: torch.Tensor | int | None,
        draft: EagleDraftModel,
    ) -> ObjectiveOutput:
        args, is_eagle1 = self.args, draft.config.eagle_version == 1
        documents = _documents(inputs)
        rows = rows_that_draft(inputs["loss_mask"], documents)
        num_trained = rows.sum() if num_trained is None else num_trained
        common: dict[str, Any] = {
            "input_ids": inputs["input_ids"],
            "loss_mask": rows,
            "embed_tokens": self.target.embed_tokens,
            "lm_head": self.target.lm_head,
            "num_steps": self._num_unrolls,
            "step_decay": args.unroll_decay if args.unroll_decay is not None else (1.0 if is_eagle1 else 0.8),
            "document_ids": documents,
            "position_ids": inputs.get("position_ids"),
            "loss": LOSSES[args.loss],
            "num_trained": max(num_trained, 1) if isinstance(num_trained, int) else num_trained.clamp(min=1),
        }
        noise = self.feature_noise if draft.training else 0.0
        if is_eagle1:
            return feature_regression_loss(
                draft,
                target.features,
                feature_weight=args.feature_loss_weight,
                logit_weight=args.logit_loss_weight,
                feature_noise=noise,
                **common,
            )
        features = target.features
        if noise:
            features = features + (torch.rand_like(features) * 2 - 1) * noise
        return training_time_test_loss(draft, features, target_logits=target.logits, **common)

    @property
    def feature_noise(self) -> float:
        """Noise on features in use, from minus to plus this."""
        noise = self.args.feature_noise
        return noise if noise is not None else (0.1 if self.model.config.eagle_version == 1 else 0.0)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Returns AdamW or what `args.optim` says; Muon and AdamW with `args.muon_learning_rate`."""
        if getattr(self, "optimizer", None) is None and self.args.muon_learning_rate is not None:
            self.optimizer: Any = MuonAndAdamW(
                self.model if model is None else model,
                self.args.muon_learning_rate,
                self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
                eps=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the state as [`~transformers.Trainer`] has it, with what was trained counted."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._counter is not None:
            self._counter.add(inputs, loss)
        return loss

    # ------------------------------------------------------------------ figures

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the accuracy of each unroll, and the acceptance length of a greedy chain."""
        if "loss" in logs:
            logs |= self._figures.metrics(self.accelerator.reduce)
            self._figures = Figures()
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Returns the loss of a batch, with its figures counted."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluates, and adds the acceptance to every depth and the acceptance length of a greedy chain."""
        of_training, self._figures = self._figures, Figures()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metrics := self._figures.metrics(self.accelerator.reduce):
            metrics["loss"] = self._figures.loss(self.accelerator.reduce)  # per trained row, whatever the batches
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self._figures = of_training
        return output

    # ------------------------------------------------------------------ checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """
        Trains, as in [`~transformers.Trainer`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint, or `True` for the newest complete one of `args.output_dir`.
            kwargs: Further arguments of [`~transformers.Trainer.train`].

        Raises:
            `ValueError`:
                if the checkpoint is not complete, or is of another run: other data, target, schedule, recipe or head.
                Where it is the last one of its run, its weights are taken and nothing is trained.
        """
        output_dir = str(self.args.output_dir)
        if self.args.process_index == 0:
            durable_checkpoints.recover(output_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            checkpoints = durable_checkpoints.complete_checkpoints(output_dir)
            if not checkpoints:
                raise ValueError(f"There is no complete checkpoint in {output_dir} to resume from.")
            resume_from_checkpoint = str(checkpoints[-1])
        self.progress = Progress()
        if resume_from_checkpoint:
            checkpoint = str(resume_from_checkpoint)
            known = self._check_resumable(checkpoint)
            self.progress = Progress.from_dict(known.get("progress", {}))
            if self._is_finished(checkpoint):
                return self._finished(checkpoint)
        self.model.main_input_name = "input_ids"  # what batches hold, for `include_num_input_tokens_seen`
        self._resumed = self.progress
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.model.__dict__.pop("main_input_name", None)
        self._read_progress()
        return output

    def _check_resumable(self, checkpoint: str) -> dict[str, Any]:
        """Compares this run with that of a checkpoint; returns what the checkpoint says of itself."""
        known = durable_checkpoints.read_facts(checkpoint)
        if differing := run_identity.differences(known["run"], self.run_identity()):
            raise ValueError(
                f"{checkpoint} is of a run that differs from this one in {'; '.join(differing)}. Training would not go "
                "on as it was. Use the same data and settings, or start a new run in another `output_dir`; it can "
                "start from a head that is there (`--head`, `EagleDraftModel.from_pretrained`)."
            )
        return known

    def run_identity(self) -> dict[str, Any]:
        """
        Returns what must be the same where a run goes on: the head's shape, data, target, recipe and schedule, and what
        was put into `identity`.
        """
        args, config = self.args, self.model.config.to_dict()
        head = {name: config[name] for name in EagleConfig.__annotations__ if name not in _NAMES_IN_CONFIG}
        num_samples = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        facts = head | run_identity.identity_of_settings(args, num_samples, draws_noise=self.feature_noise > 0)
        facts |= {
            "data": self._identity_of("data", self.train_dataset, run_identity.identity_of_data),
            "target": self._identity_of("target", self.target.model, run_identity.identity_of_weights),
        }
        if args.load_best_model_at_end:
            facts["eval_data"] = self._identity_of("eval_data", self.eval_dataset, run_identity.identity_of_data)
        return facts | self.identity

    def _identity_of(self, name: str, thing: Any, compute: Any) -> str | None:
        # Computed once: at every checkpoint it would cost a pass over all texts.
        if name not in self._identities or self._identities[name][0] is not thing:
            self._identities[name] = thing, compute(thing)
        return self._identities[name][1]

    def _is_finished(self, checkpoint: str) -> bool:
        """Checks whether a checkpoint of this run is its last one."""
        state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
        if self.args.max_steps > 0:
            return state.global_step >= self.args.max_steps
        return float(state.epoch or 0) >= self.args.num_train_epochs

    def _finished(self, checkpoint: str) -> TrainOutput:
        """Takes the weights of a run that has finished; [`~transformers.Trainer`] would train one step more."""
        logger.info(f"{checkpoint} is the last one of its run: there is nothing left to train.")
        self.state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best if best is not None and os.path.isdir(best) else checkpoint)
        steps = max(self.state.global_step, 1)
        return TrainOutput(self.state.global_step, self.progress.total_loss / steps, {})

    def _read_progress(self) -> None:
        if self._counter is not None:
            self.progress = self._counter.read(self.accelerator.gather, self.args.device)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Lets [`~transformers.Trainer`] write the checkpoint beside its place, and renames it when it is complete."""
        run_dir = Path(self._get_output_dir(trial))
        staging = durable_checkpoints.staging_folder(run_dir, self.state.global_step)
        final = run_dir / f"checkpoint-{self.state.global_step}"
        pushes, self.args.push_to_hub = self.args.push_to_hub, False  # from its place, below
        self._read_progress()
        try:
            self._staging = staging
            super()._save_checkpoint(model, trial)
            self._staging = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.state.best_global_step:
                    self.state.best_model_checkpoint = str(run_dir / f"checkpoint-{self.state.best_global_step}")
                    self.state.save_to_json(str(staging / final.name / "trainer_state.json"))
                facts = {"run": self.run_identity(), "progress": as_dict(self.progress)} | self.facts_of_run
                durable_checkpoints.publish(staging / final.name, final, facts)
                durable_checkpoints.rotate(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        except (OSError, SafetensorError, RuntimeError) as error:  # `torch.save` raises the latter on a full disk
            if self.args.should_save:
                durable_checkpoints.recover(run_dir)
            raise OSError(
                f"The checkpoint of step {self.state.global_step} could not be saved in {run_dir}: {error}. "
                f"{self._last_good()} If the disk is full, free space; then resume."
            ) from error
        finally:
            self._staging, self.args.push_to_hub = None, pushes
        self.accelerator.wait_for_everyone()
        if pushes:
            self._push_from_checkpoint(str(final))

    def _last_good(self) -> str:
        checkpoints = durable_checkpoints.complete_checkpoints(self.args.output_dir)
        if not checkpoints:
            return "No checkpoint was saved before."
        return f"The last good checkpoint is {os.fspath(checkpoints[-1])}."


def _documents(inputs: dict[str, Any]) -> torch.Tensor:
    """Returns which text a position belongs to, -1 for padding, of shape `(batch_size, seq_len)`."""
    if (documents := inputs.get("document_ids")) is not None:
        return documents
    mask = inputs.get("attention_mask")
    return torch.zeros_like(inputs["input_ids"]) if mask is None else mask.long() - 1


class _CountFromHere(TrainerCallback):
    """Begins to count where training does; again where it begins anew with a smaller batch."""

    def __init__(self, trainer: EagleTrainer):
        self._trainer = weakref.ref(trainer)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if (trainer := self._trainer()) is not None:
            trainer._counter = ProgressCounter(trainer._resumed)
