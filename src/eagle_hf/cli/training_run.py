"""Runs `eagle-hf train`, from its options to a head with its card."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from ..data.frozen_clock import now
from ..draft_options import DraftOptions
from ..head.modeling_eagle import EagleDraftModel
from ..hub.card import create_model_card
from ..hub.measurements import Measurements, TaskResult
from ..hub.public_command import public_command
from ..hub_names import hub_id, is_hub_id
from ..loading.targets import file_options, load_target, load_tokenizer
from ..target.config import TargetConfig
from ..training import (
    DataReport,
    EagleTrainer,
    EagleTrainingArguments,
    FeatureStore,
    FrozenTarget,
    PackedCollator,
    PackedDataset,
    PaddingCollator,
    SampleDataset,
    coverage,
    finished_run,
    make_samples,
    most_frequent_tokens,
    new_head,
    pad_features,
    write_features,
)
from ..training.durable_checkpoints import complete_checkpoints, read_facts
from ..training.feature_store import recorded_time, stored_bytes
from ..training.run_identity import identity_of_weights
from .target_options import OPTIONS as TARGET_OPTIONS
from .target_options import target_options
from .training_options import DataArguments, HeadArguments, PublicArguments, make_parser


def train(args: argparse.Namespace) -> int:
    """Prepares everything that can fail, trains, evaluates, and saves the head."""
    parser = make_parser()
    others = ("command", "config", "argv", *TARGET_OPTIONS)
    options = {name: value for name, value in vars(args).items() if name not in others}
    head_args, data_args, public_args, training_args = parser.parse_dict(options)
    _check_names(public_args, head_args, training_args)
    set_seed(training_args.seed)
    if training_args.process_index == 0:
        logging.set_verbosity_info()

    target_args = target_options(args, use_gpu=False)  # the trainer brings it to its own device
    tokenizer = load_tokenizer(head_args.target, **file_options(target_args))
    target = load_target(head_args.target, **target_args)
    output_dir, folder = Path(str(training_args.output_dir)), Path(str(training_args.output_dir)) / "head"
    rendered_at = _time_of_run(output_dir, data_args.features)
    train_samples, eval_samples = _samples(data_args, target, tokenizer, rendered_at)
    head, share = _head(head_args, target, train_samples)
    head.config.base_model_name_or_path = _name_of_target(public_args, head_args, head)
    print(f"head of {head.num_parameters() / 1e6:.2f}M parameters, target of {target.num_parameters() / 1e6:.2f}M")

    train_dataset, collator = _arrange(train_samples, data_args, tokenizer)
    eval_dataset = None if eval_samples is None else _arrange(eval_samples, data_args, tokenizer)[0]
    trainer = EagleTrainer(
        head,
        target,
        training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=None,
    )
    # What the head is made of is drawn with the seed; one that is there is known by its weights.
    trainer.identity["head"] = "new" if head_args.head is None else identity_of_weights(head)
    trainer.facts_of_run["rendered_at"] = rendered_at
    num_evaluated = 0 if eval_samples is None else len(eval_samples)
    trainer.described = _description(args.argv, public_args, head_args, data_args, train_samples, num_evaluated)
    trainer.described["coverage"] = round(share, 6)
    if data_args.features is not None:
        with training_args.main_process_first(local=False, desc="computing features"):  # the others find them there
            features = Path(data_args.features)
            trainer.train_dataset = _stored(trainer.target, train_dataset, features / "train", rendered_at)
            if eval_dataset is not None:
                trainer.eval_dataset = _stored(trainer.target, eval_dataset, features / "eval", rendered_at)
        trainer.data_collator = pad_features
    if training_args.resume_from_checkpoint is None and finished_run.has_finished(trainer, folder):
        print(f"this run has finished; its head is in {folder}. Nothing was trained, nothing was written.")
        trainer.accelerator.end_training()
        return 0
    resume = bool(complete_checkpoints(output_dir))
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or resume)
    metrics: dict[str, float] = {}
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
    if head_args.head is None:
        head.generation_config = DraftOptions.open_generation_config()
    if metrics and eval_samples is not None:
        trainer.described["evaluation"] = _evaluation(trainer, len(eval_samples), metrics)
    trainer.save_model(str(folder))
    if training_args.process_index == 0:
        head.training_facts = trainer.describe()
        create_model_card(head, str(training_args.hub_model_id or "head")).save(folder / "README.md")
        finished_run.record(trainer, rendered_at)
        print(f"saved to {folder}")
        if head.config.base_model_name_or_path is None:
            print(
                "its target was loaded from a folder: name it when you publish the head, `eagle-hf push --base_model`"
            )
    trainer.accelerator.wait_for_everyone()  # what the threads of a process group still hold is let go
    trainer.accelerator.end_training()  # a process that exits while they run may be aborted
    return 0


def _check_names(args: PublicArguments, head_args: HeadArguments, training_args: EagleTrainingArguments) -> None:
    """Checks, before anything is loaded, that names can be published."""
    for option, name in (("base_model", args.base_model), ("hub_model_id", training_args.hub_model_id)):
        if name is not None and not is_hub_id(name):
            raise ValueError(
                f"`--{option}` is {name!r}, which is a path or no name at all. Expected a repository on the Hub, such "
                "as 'org/name'."
            )
    if training_args.push_to_hub and training_args.hub_model_id is None:
        raise ValueError("`--push_to_hub` needs `--hub_model_id`, the repository to push to.")
    if training_args.push_to_hub and args.base_model is None and hub_id(head_args.target) is None:
        raise ValueError(
            f"`--push_to_hub` needs `--base_model`, the target's repository: {head_args.target} is a folder here, and "
            "others could not use it."
        )


def _name_of_target(args: PublicArguments, head_args: HeadArguments, head: EagleDraftModel) -> str | None:
    """Returns the target's repository: what the user says, or where it was loaded from; nothing for a folder."""
    if args.base_model is not None:
        return args.base_model
    name, known = hub_id(head_args.target), hub_id(head.config.base_model_name_or_path)
    if name is None and known is not None and Path(head_args.target).name == known.rpartition("/")[2]:
        return known  # a copy of the target that the head was trained for
    return name


def _description(
    argv: list[str],
    args: PublicArguments,
    head_args: HeadArguments,
    data_args: DataArguments,
    samples: SampleDataset,
    num_evaluated: int,
) -> dict[str, Any]:
    """Returns the fields of [`TrainingFacts`] that the trainer does not know."""
    names = {} if args.base_model is None else {head_args.target: args.base_model}
    report = samples.report
    return {
        "command": public_command(argv, names),
        "data": _in_words(report, data_args.max_length, num_evaluated),
        "datasets": args.datasets or (),
        "license": args.license,
        "max_length": data_args.max_length,
        "rows": {
            "rows_read": report.rows.num_rows,
            "rows_malformed": report.rows.num_malformed,
            "samples_trained": len(samples),
            "samples_evaluated": num_evaluated,
            "samples_cut": report.num_cut,
            "tokens_cut_off": report.num_cut_tokens,
            "samples_too_long_dropped": report.num_dropped,
            "samples_without_trained_token_dropped": report.num_untrained,
        },
    }


def _in_words(report: DataReport, max_length: int, num_evaluated: int) -> str:
    """Says what became of the rows, without the places of the malformed ones, which are paths."""
    share = report.num_trained_tokens / max(report.num_tokens, 1)
    kept = f"; {num_evaluated:,} more were kept for evaluation" if num_evaluated else ""
    return " ".join(
        [
            f"{report.rows.num_rows:,} rows read, {report.rows.num_malformed:,} of them malformed.",
            f"{report.num_samples:,} samples of {report.num_tokens:,} tokens, {report.num_trained_tokens:,} "
            f"({share:.1%}) of them trained{kept}.",
            f"Longer than {max_length:,} tokens: {report.num_cut:,} cut (by {report.num_cut_tokens:,} tokens in all), "
            f"{report.num_dropped:,} dropped; the longest had {report.longest:,} tokens.",
            f"Dropped without a trained token: {report.num_untrained:,}.",
        ]
    )


def _evaluation(trainer: EagleTrainer, num_samples: int, metrics: dict[str, float]) -> Measurements:
    """Returns what was measured on texts that were not trained."""
    facts = trainer.describe()
    result = TaskResult(
        "samples kept out of training, greedy chain",
        acceptance_length=metrics["eval_simulated_acceptance_length"],
        num_prompts=num_samples,
        acceptance_by_depth=[value for name, value in metrics.items() if "_accepted_at_depth_" in name],
    )
    dtype = facts.hyperparameters["precision"]
    notes = "Counted on given texts, token by token, by the training command."
    return Measurements([result], facts.command, facts.hardware or "", dtype, notes=notes)


def _time_of_run(output_dir: Path, features: str | None) -> str:
    """Returns the time that chat templates see: that at which the run, or computing its features, began."""
    known = [finished_run.recorded_time(output_dir)]
    known += [read_facts(checkpoint).get("rendered_at") for checkpoint in complete_checkpoints(output_dir)[-1:]]
    known += [] if features is None else [recorded_time(Path(features) / "train")]
    return next((moment for moment in known if moment is not None), now())


def _samples(
    data_args: DataArguments, target: PreTrainedModel, tokenizer: Any, rendered_at: str
) -> tuple[SampleDataset, SampleDataset | None]:
    """Returns samples to train and to evaluate on, and prints what became of the rows."""

    stop_token_ids = target.generation_config.eos_token_id if target.generation_config is not None else None

    def read(data: list[str]) -> SampleDataset:
        samples = make_samples(
            data,
            tokenizer,
            max_length=data_args.max_length,
            overflow=data_args.overflow,  # type: ignore[arg-type]  # argparse has checked the choice
            last_turn_only=data_args.last_turn_only,
            stop_token_ids=[stop_token_ids] if isinstance(stop_token_ids, int) else stop_token_ids,
            vocab_size=TargetConfig(target.config).vocab_size,
            max_malformed=data_args.max_malformed,
            chat_template_kwargs=json.loads(data_args.chat_template_kwargs or "{}"),
            rendered_at=rendered_at,
        )
        print(f"{', '.join(data)}: {samples.report}")
        return samples

    samples = read(data_args.data)
    if data_args.eval_data is not None:
        return samples, read(data_args.eval_data)
    if not data_args.eval_samples:
        return samples, None
    if data_args.eval_samples >= len(samples):
        raise ValueError(
            f"`--eval_samples {data_args.eval_samples}` leaves nothing of {len(samples)} samples to train on."
        )
    step = len(samples) / data_args.eval_samples  # spread over the file, which may be ordered
    held_out = {int(i * step) for i in range(data_args.eval_samples)}
    rows: list[Any] = [samples[i] for i in range(len(samples))]
    rest = [row for i, row in enumerate(rows) if i not in held_out]
    # What became of the rows is said of all of them.
    return SampleDataset(rest, replace(samples.report)), SampleDataset([rows[i] for i in sorted(held_out)])


def _head(head_args: HeadArguments, target: PreTrainedModel, samples: SampleDataset) -> tuple[EagleDraftModel, float]:
    """Returns the head to train, and the share of the trained text that its vocabulary holds."""
    if head_args.head is not None:
        head = EagleDraftModel.from_pretrained(head_args.head, dtype=torch.float32)
        vocabulary = head.draft_to_target_ids
    else:
        names = ("num_hidden_layers", "feature_layer_ids", "fc_norm", "norm_before_fc", "norm_output",
                 "norm_before_residual")  # fmt: skip
        fields = {name: getattr(head_args, name) for name in names}
        if head_args.intermediate_size is not None:
            fields["intermediate_size"] = head_args.intermediate_size
        size = head_args.draft_vocab_size or TargetConfig(target.config).vocab_size
        vocabulary = most_frequent_tokens(samples.token_counts, size)
        head = new_head(target, vocabulary, head_args.eagle_version, **fields)
    share = coverage(samples.token_counts, vocabulary)
    print(f"draft vocabulary of {len(vocabulary)} tokens, which covers {share:.2%} of the trained text")
    return head, share


def _arrange(samples: SampleDataset, data_args: DataArguments, tokenizer: Any) -> tuple[Any, Any]:
    """Returns the dataset and its collator, packed or not."""
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    if not data_args.packing:
        return samples, PaddingCollator(pad_token_id)
    packed = PackedDataset(samples, data_args.max_length)
    print(f"packed into {len(packed)} blocks, {packed.efficiency:.1%} of their tokens used")
    return packed, PackedCollator(pad_token_id, data_args.max_length)


def _stored(target: FrozenTarget, dataset: Any, folder: Path, rendered_at: str) -> FeatureStore:
    """Returns the features of a dataset, computed unless they are there."""
    num_tokens = sum(dataset.lengths)
    hidden_size = TargetConfig(target.model.config).hidden_size
    size = stored_bytes(num_tokens, len(target.feature_layer_ids), hidden_size, target.model.dtype)
    print(f"features of {num_tokens} tokens take {size / 1e9:.2f} GB in {folder}")
    write_features(target, dataset, folder, rendered_at=rendered_at)
    return FeatureStore(folder, target.feature_layer_ids)
