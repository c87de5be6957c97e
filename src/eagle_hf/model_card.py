"""
Model cards of heads: metadata that the Hub understands and the twelve sections that users look for. A card holds no
number that was not measured: where nothing was, it says so and names the command that measures it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from . import versions
from .draft_options import DraftOptions
from .modeling_eagle import EagleDraftModel


LIBRARY_NAME = "eagle_hf"
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

LIMITATIONS = (
    "For this target only: acceptance falls with fine-tunes of it, on other kinds of text and languages than those of "
    "the training, and on longer texts. On other machines another tree may be faster (`draft.generation_config`)."
)


@dataclass(frozen=True)
class TaskResult:
    """
    What was measured on one task.

    Args:
        task (`str`): Its name, such as `"MT-Bench"`.
        acceptance_length (`float`): Tokens per verification, the one that the target adds included.
        num_prompts (`int`): How many prompts.
        temperature (`float`, *optional*, defaults to 0.0): 0 is greedy.
        acceptance_by_depth (`Sequence[float]`, *optional*):
            Share of verifications that accept at least 1, 2, ... drafted tokens.
        plain_tokens_per_second, eagle_tokens_per_second, speedup (`float`, *optional*):
            Without and with the head on the same hardware, and what a run was faster by (a median, if there were
            several: it need not be the ratio of the others).
        dataset (`str`, *optional*): Data set on the Hub, such as `"openai/gsm8k"`.
        speedup_quartiles (`tuple[float, float]`, *optional*): Quartiles of the speedup over several runs.

    Raises:
        `ValueError`: if a figure is impossible.
    """

    task: str
    acceptance_length: float
    num_prompts: int
    temperature: float = 0.0
    acceptance_by_depth: Sequence[float] = ()
    plain_tokens_per_second: float | None = None
    eagle_tokens_per_second: float | None = None
    speedup: float | None = None
    dataset: str | None = None
    speedup_quartiles: tuple[float, float] | None = None

    def __post_init__(self):
        if not self.acceptance_length >= 1:
            raise ValueError(
                f"`acceptance_length` of {self.task} is {self.acceptance_length}, but every verification gives at "
                "least one token: it counts the target's own token as well."
            )
        shares = list(self.acceptance_by_depth)
        if any(not 0 <= share <= 1 for share in shares) or shares != sorted(shares, reverse=True):
            raise ValueError(
                f"`acceptance_by_depth` of {self.task} is {shares}, expected shares from 0 to 1 that do not grow: a "
                "token is accepted only after those before it."
            )
        if self.num_prompts < 1:
            raise ValueError(f"`num_prompts` of {self.task} is {self.num_prompts}: nothing was measured.")


@dataclass(frozen=True)
class Measurements:
    """
    A benchmark: what a card shows as results.

    Args:
        results (`Sequence[TaskResult]`): One per task and temperature.
        command (`str`): Measures them again.
        hardware (`str`): What they were measured on.
        dtype (`str`): Dtype of target and head.
        versions (`Mapping[str, str]`, *optional*): Defaults to those in use.
        tokens_compared (`int`, *optional*): New tokens that were compared with plain `generate` and equal to it.
        notes (`str`, *optional*): Anything else that a reader has to know: repeats, lengths, selection of prompts.

    Raises:
        `ValueError`: if there are no results, or it is not said how to get them.
    """

    results: Sequence[TaskResult]
    command: str
    hardware: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    tokens_compared: int | None = None
    notes: str | None = None

    def __post_init__(self):
        if not self.results or not self.command or not self.hardware:
            raise ValueError("Measurements need results, the command that measures them, and the hardware.")


@dataclass(frozen=True)
class TrainingFacts:
    """
    How a head was trained.

    Args:
        command (`str`): Trains it again.
        data (`str`): In words: sources, how the answers were made, amount, chat template.
        datasets (`Sequence[str]`, *optional*): Data sets on the Hub.
        hyperparameters (`Mapping[str, Any]`, *optional*): Learning rate, batch size, epochs, unrolls, ...
        seed (`int`, *optional*): Seed.
        hardware (`str`, *optional*): Hardware.
        hours (`float`, *optional*): Duration.
        final_metrics (`Mapping[str, float]`, *optional*): Losses and accuracies at the end.
        versions (`Mapping[str, str]`, *optional*): Defaults to those in use.
        git_sha (`str`, *optional*): Commit of the code.
    """

    command: str
    data: str
    datasets: Sequence[str] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    hardware: str | None = None
    hours: float | None = None
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    git_sha: str | None = None


def current_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    from . import __version__

    return {
        "eagle_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "huggingface_hub": huggingface_hub.__version__,
    }


def create_model_card(
    draft: EagleDraftModel,
    model_id: str,
    *,
    measurements: Measurements | None = None,
    training: TrainingFacts | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    base_model: str | None = None,
    base_model_revision: str | None = None,
    tags: Sequence[str] = (),
    limitations: str = LIMITATIONS,
    custom_generate: bool = False,
) -> ModelCard:
    """
    Write the model card of a head.

    Args:
        draft ([`EagleDraftModel`]): The head.
        model_id (`str`): Repository that the card is for.
        measurements ([`Measurements`], *optional*): Results. Without them the card says that nothing was measured.
        training ([`TrainingFacts`], *optional*): How it was trained.
        license (`str`, *optional*): Identifier of the head's licence on the Hub, such as `"apache-2.0"`.
        language (`str` or `Sequence[str]`, *optional*): Languages of the training data.
        base_model (`str`, *optional*): The target on the Hub. Defaults to what the head's configuration names.
        base_model_revision (`str`, *optional*): Its exact revision.
        tags (`Sequence[str]`, *optional*): More tags.
        limitations (`str`, *optional*): What the head is not for.
        custom_generate (`bool`, *optional*, defaults to `False`): Whether the repository has a `custom_generate`.

    Returns:
        [`~huggingface_hub.ModelCard`]

    Example:

    ```python
    >>> from eagle_hf import EagleDraftModel, create_model_card

    >>> draft = EagleDraftModel.from_pretrained("hub_cards/EAGLE3-demo-llama-10m")
    >>> create_model_card(draft, "org/head", license="apache-2.0").save("runs/README.md")
    ```
    """
    target = base_model or draft.config.base_model_name_or_path
    if target is not None and not _is_hub_id(target):
        target = None  # a folder of the machine that trained the head, of no use to anybody else
    results = list(measurements.results) if measurements is not None else []
    version = "EAGLE-3" if draft.config.eagle_version == 3 else "EAGLE-1"
    name = model_id.rpartition("/")[2]
    datasets = list(training.datasets) if training is not None else []
    card_data = ModelCardData(
        library_name=LIBRARY_NAME,
        license=license,
        language=language if language is None or isinstance(language, str) else list(language),
        base_model=target,
        datasets=datasets or None,
        tags=list(
            dict.fromkeys(
                ["eagle", version.lower().replace("-", ""), "speculative-decoding", "draft-model", "transformers"]
                + (["custom_generate"] if custom_generate else [])
                + list(tags)
            )
        ),
        metrics=["acceptance_length"] if results else None,
        model_name=name if results else None,
        eval_results=[evaluation for result in results for evaluation in eval_results(result)] or None,
    )
    max_depth = max((len(result.acceptance_by_depth) for result in results), default=0)
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        model_id=model_id,
        version=version,
        target=target,
        target_link=f"[{target}](https://huggingface.co/{target})" if target and "/" in target else target,
        target_revision=base_model_revision,
        custom_generate=custom_generate,
        eagle_hf_version=current_versions()["eagle_hf"],
        oldest_transformers=versions.OLDEST,
        facts=_facts(draft),
        results=[_result_row(result) for result in results],
        measurement_conditions=_conditions(measurements),
        measurement_command=measurements.command if measurements is not None else None,
        acceptance_by_depth=[_depth_row(result, max_depth) for result in results if result.acceptance_by_depth],
        max_depth=max_depth,
        training=training,
        training_rows=_training_rows(training),
        tokens_compared=f"{measurements.tokens_compared:,}" if measurements and measurements.tokens_compared else None,
        license=license,
        limitations=limitations,
        provenance=_provenance(training),
    )


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def eval_results(result: TaskResult) -> list[EvalResult]:
    """The figures of a task as metadata that the Hub reads."""
    values = {"acceptance_length": result.acceptance_length, "speedup": result.speedup}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=result.dataset or result.task.lower().replace(" ", "-"),
            dataset_name=result.task,
            metric_type=metric,
            metric_name=f"{metric.replace('_', ' ')}, temperature {result.temperature:g}",
            metric_value=round(value, 4),
        )
        for metric, value in values.items()
        if value is not None
    ]


def _facts(draft: EagleDraftModel) -> dict[str, str]:
    config, options = draft.config, DraftOptions.from_generation_config(draft.generation_config)
    num_bytes = sum(t.numel() * t.element_size() for t in (*draft.parameters(), *draft.buffers()))
    features = "hidden states 2, n // 2 and n - 3 of the n layers of the target"
    if config.feature_layer_ids is not None:
        features = "hidden states " + ", ".join(map(str, config.feature_layer_ids)) + " of the target"
    vocabulary = f"{config.draft_vocab_size or config.vocab_size:,} of {config.vocab_size:,} tokens"
    size = f"{options.num_assistant_tokens} nodes, depth {options.draft_depth}, width {options.draft_width}"
    tree = {
        "dynamic": f"dynamic, {size}",
        "auto": f"sized while generating, at most {size}",
        "static": f"static, {len(options.static_paths)} nodes",
        "chain": f"chain of {options.draft_depth}",
        None: f"sized while generating on a CPU, dynamic elsewhere; at most {size}",
    }[getattr(draft.generation_config, "draft_tree", None)]
    return {
        "layers": str(config.num_hidden_layers),
        "parameters, dtype": f"{draft.num_parameters() / 1e6:.2f}M, {str(draft.dtype).removeprefix('torch.')}"
        f" ({num_bytes / 1e6:.1f} MB)",
        "draft vocabulary": vocabulary,
        "features": features,
        "embedding, lm_head": ", ".join(
            "its own" if module is not None else "the target's" for module in (draft.embed_tokens, draft.lm_head)
        ),
        "tree (`generation_config`)": tree,
        "longest text": f"positions up to {config.max_position_embeddings:,} (`max_position_embeddings`)",
    }


def _result_row(result: TaskResult) -> list[str]:
    rates = (result.speedup, result.plain_tokens_per_second, result.eagle_tokens_per_second)
    speedup, plain, eagle = ("not measured" if rate is None else f"{rate:.2f}" for rate in rates)
    length = f"{result.acceptance_length:.2f}"
    if result.speedup_quartiles is not None:
        speedup += " [{:.2f}, {:.2f}]".format(*result.speedup_quartiles)
    return [result.task, f"{result.temperature:g}", f"{result.num_prompts:,}", length, speedup, plain, eagle]


def _depth_row(result: TaskResult, max_depth: int) -> list[str]:
    shares = [f"{share:.2f}" for share in result.acceptance_by_depth]
    return [result.task, f"{result.temperature:g}", *shares, *[""] * (max_depth - len(shares))]


def _conditions(measurements: Measurements | None) -> str | None:
    if measurements is None:
        return None
    parts = [measurements.hardware, measurements.dtype, _join(measurements.versions)]
    return "; ".join(parts) + "." + (f" {measurements.notes}" if measurements.notes else "")


def _join(items: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items.items())


def _training_rows(training: TrainingFacts | None) -> dict[str, str]:
    if training is None:
        return {}
    rows = {name: str(value) for name, value in training.hyperparameters.items()}
    if training.seed is not None:
        rows["seed"] = str(training.seed)
    if training.hardware:
        rows["hardware"] = training.hardware
    if training.hours is not None:
        rows["hours"] = f"{training.hours:.2f}"
    return rows | {f"{name}, at the end": f"{value:.4g}" for name, value in training.final_metrics.items()}


def _provenance(training: TrainingFacts | None) -> str:
    if training is None:
        return f"The command that trained this head is not recorded. Card written with {_join(current_versions())}."
    commit = f", commit {training.git_sha}" if training.git_sha else ""
    return f"Versions: {_join(training.versions)}{commit}."
