"""Options of `eagle-hf train`, beside those of the trainer."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import HfArgumentParser


@dataclass
class HeadArguments:
    """Says what is trained."""

    target: str = field(metadata={"help": "Target: repository id or folder."})
    head: str | None = field(
        default=None, metadata={"help": "Train this head further (repository id or folder) instead of a new one."}
    )
    eagle_version: int = field(
        default=3, metadata={"help": "New head: 3, or 1 for heads of EAGLE-1 and EAGLE-2.", "choices": [1, 3]}
    )
    draft_vocab_size: int | None = field(
        default=None,
        metadata={"help": "New head: draft only from so many of the most frequent tokens (default: all)."},
    )
    intermediate_size: int | None = field(
        default=None, metadata={"help": "New head: width of the MLP (default: the target's)."}
    )
    num_hidden_layers: int = field(default=1, metadata={"help": "New head: decoder layers."})
    feature_layer_ids: list[int] | None = field(
        default=None,
        metadata={"help": "New head: which `hidden_states` of the target it reads (default: 2, n // 2, n - 3)."},
    )
    fc_norm: bool = field(default=False, metadata={"help": "New head: norm every feature (EAGLE-3.1)."})
    norm_before_fc: bool = field(default=False, metadata={"help": "New head: one norm over all features."})
    norm_output: bool = field(
        default=False, metadata={"help": "New head: the next draft step reads the normed output (EAGLE-3.1)."}
    )
    norm_before_residual: bool = field(
        default=False, metadata={"help": "New head: the residual is the normed feature."}
    )


@dataclass
class DataArguments:
    """Says what it is trained on."""

    data: list[str] = field(
        metadata={"help": "Conversations, prompts with completions, or text: JSON lines, folders, dataset ids."}
    )
    eval_data: list[str] | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    eval_samples: int = field(
        default=0, metadata={"help": "Without --eval_data: keep so many samples of the data for evaluation."}
    )
    max_length: int = field(default=2048, metadata={"help": "Most tokens of a sample."})
    overflow: str = field(
        default="cut", metadata={"help": "Cut longer samples from the right, or drop them.", "choices": ["cut", "drop"]}
    )
    packing: bool = field(default=False, metadata={"help": "Pack several samples into blocks of max_length tokens."})
    last_turn_only: bool = field(default=False, metadata={"help": "Train only the last answer of a conversation."})
    max_malformed: float = field(default=0.01, metadata={"help": "Share of malformed rows above which nothing starts."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "Variables of the chat template, as JSON, such as '{\"enable_thinking\": false}'."},
    )
    features: str | None = field(
        default=None,
        metadata={"help": "Compute the target's features once, into this folder, instead of in every step."},
    )


@dataclass
class PublicArguments:
    """Says what the card cannot know from training."""

    base_model: str | None = field(
        default=None,
        metadata={"help": "Repository of the target, where it is loaded from a folder (never written itself)."},
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the head, such as apache-2.0."})
    datasets: list[str] | None = field(default=None, metadata={"help": "Data sets on the Hub that the data are from."})


def make_parser(**options: Any) -> "HfArgumentParser":
    """Returns the parser that fills the three dataclasses above and the arguments of the trainer."""
    from transformers import HfArgumentParser

    from ..training import EagleTrainingArguments

    return HfArgumentParser((HeadArguments, DataArguments, PublicArguments, EagleTrainingArguments), **options)
