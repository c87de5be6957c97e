"""
Model cards of heads: metadata that the Hub understands and the twelve sections that users look for. A card holds no
number that was not measured: where nothing was, it says so and names the command that measures it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from .. import versions
from ..draft_options import DraftOptions
from ..hub_names import hub_id, is_hub_id
from .measurements import Measurements, TaskResult, current_versions
from .training_facts import TrainingFacts


LIBRARY_NAME = "eagle_hf"
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

LIMITATIONS = (
    "For this target only: acceptance falls with fine-tunes of it, on other kinds of text and languages than those of "
    "the training, and on longer texts. On other machines another tree may be faster (`draft.generation_config`)."
)


def create_model_card(
    draft: PreTrainedModel,
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
    Writes the model card of a head.

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
    >>> from eagle_hf import EagleDraftModel
    >>> from eagle_hf.hub import create_model_card

    >>> draft = EagleDraftModel.from_pretrained("hub_cards/EAGLE3-demo-llama-10m")
    >>> create_model_card(draft, "org/head", license="apache-2.0").save("runs/README.md")
    ```
    """
    if base_model is not None:
        target = base_model if is_hub_id(base_model) else None
    else:  # where it is a folder of the machine that trained the head, it is of no use to anybody else
        target = hub_id(draft.config.base_model_name_or_path)
    training = training if training is not None else draft.training_facts
    if training is not None:
        license = license if license is not None else training.license
        measurements = measurements if measurements is not None else training.evaluation
    results = list(measurements.results) if measurements is not None else []
    version = "EAGLE-3" if draft.config.eagle_version == 3 else "EAGLE-1"
    name = model_id.rpartition("/")[2]
    datasets = list(training.datasets) if training is not None else []
    card_data = ModelCardData(
        library_name=LIBRARY_NAME,
        license=license,
        language=language if language is None or isinstance(language, str) else list(language),
        pipeline_tag="text-generation",
        base_model=target,
        # Without a relation the Hub takes every model for a finetune of its base. Of those that it knows, this is the
        # one of models that do not run without it.
        base_model_relation="adapter" if target is not None else None,
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
        facts=_facts(draft, training),
        results=[_result_row(result) for result in results],
        measurement_conditions=_conditions(measurements),
        measurement_command=measurements.command if measurements is not None else None,
        acceptance_by_depth=[_depth_row(result, max_depth) for result in results if result.acceptance_by_depth],
        max_depth=max_depth,
        training=training,
        training_rows=_training_rows(training),
        trained_before=_trained_before(training),
        tokens_compared=f"{measurements.tokens_compared:,}" if measurements and measurements.tokens_compared else None,
        license=license,
        limitations=limitations,
        provenance=_provenance(training),
    )


def eval_results(result: TaskResult) -> list[EvalResult]:
    """Returns the figures of a task as metadata that the Hub reads."""
    values = {"acceptance_length": result.acceptance_length, "speedup": result.speedup}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=result.dataset or re.sub("[^a-z0-9_.]+", "-", result.task.lower()).strip("-"),
            dataset_name=result.task,
            metric_type=metric,
            metric_name=f"{metric.replace('_', ' ')}, temperature {result.temperature:g}",
            metric_value=round(value, 4),
        )
        for metric, value in values.items()
        if value is not None
    ]


def _facts(draft: PreTrainedModel, training: TrainingFacts | None) -> dict[str, str]:
    config, options = draft.config, DraftOptions.from_generation_config(draft.generation_config)
    num_bytes = sum(t.numel() * t.element_size() for t in (*draft.parameters(), *draft.buffers()))
    features = "hidden states 2, n // 2 and n - 3 of the n layers of the target"
    if config.feature_layer_ids is not None:
        features = "hidden states " + ", ".join(map(str, config.feature_layer_ids)) + " of the target"
    vocabulary = f"{config.draft_vocab_size or config.vocab_size:,} of {config.vocab_size:,} tokens"
    if training is not None and training.coverage is not None:
        vocabulary += f", which cover {training.coverage:.2%} of the trained text"
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
        "longest text": _longest_text(training)
        + f"positions up to {config.max_position_embeddings:,} (`max_position_embeddings`)",
    }


def _longest_text(training: TrainingFacts | None) -> str:
    if training is None or training.longest is None:
        return ""
    limit = f" (limit {training.max_length:,})" if training.max_length is not None else ""
    return f"trained on up to {training.longest:,} tokens{limit}; "


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
    known: dict[str, Any] = {
        "seed": training.seed,
        "steps made": _number(training.steps),
        "epochs made": _number(training.epochs),
        "tokens read": _number(training.num_tokens),
        "tokens trained": _number(training.num_trained_tokens),
        "hardware": training.hardware,
        "hours": _number(training.hours),
        "pieces (1: never interrupted)": training.num_starts,
        "training loss, last logged": _number(training.last_logged_loss),
        "training loss, mean of all steps": _number(training.mean_loss),
    }
    rows |= {name: str(value) for name, value in known.items() if value is not None}
    return rows | {f"{name}, at the end": f"{value:.4g}" for name, value in training.final_metrics.items()}


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _trained_before(training: TrainingFacts | None) -> str | None:
    """Returns what the training started from, where it was a head that had been trained."""
    if training is None or training.started_from is None:
        return None
    before = training.started_from
    counts = [f"{value:,} {name}" for name, value in (("steps", before.steps), ("tokens", before.num_tokens)) if value]
    amount = f" ({', '.join(counts)})" if counts else ""
    return f"The head had been trained before{amount}, by: `{before.command}`"


def _provenance(training: TrainingFacts | None) -> str:
    if training is None:
        return f"The command that trained this head is not recorded. Card written with {_join(current_versions())}."
    commit = f", commit {training.git_sha}" if training.git_sha else ""
    return f"Versions: {_join(training.versions)}{commit}."
