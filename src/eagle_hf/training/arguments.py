"""Arguments of training a head."""

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from .losses import LOSSES


@dataclass
class EagleTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what EAGLE adds. Defaults of the two families are those of the authors.

    Args:
        num_unrolls (`int`, *optional*):
            How many tokens deep the head is unrolled on its own outputs. Defaults to 7 for EAGLE-3 heads
            (training-time test; 1 is none) and to 1 for EAGLE-1 heads (more are HASS's harmonised steps).
        unroll_decay (`float`, *optional*): Weight of unroll `i` is `unroll_decay ** i`. Defaults to 0.8, EAGLE-1 to 1.
        loss (`str`, *optional*, defaults to `"cross_entropy"`):
            How far the draft's distribution is from the target's: `cross_entropy`, `kl`, `reverse_kl`,
            `total_variation`, `lk_alpha` or `lk_lambda` (LK losses).
        feature_loss_weight (`float`, *optional*, defaults to 1.0): EAGLE-1: weight of the loss on features.
        logit_loss_weight (`float`, *optional*, defaults to 0.1): EAGLE-1: weight of the loss on distributions.
        feature_noise (`float`, *optional*):
            Features are read with uniform noise between minus and plus this. Defaults to 0.1 for EAGLE-1 heads, to 0
            for EAGLE-3 heads.
        muon_learning_rate (`float`, *optional*):
            Train the matrices inside the head with Muon at this learning rate, all else with AdamW at `learning_rate`.
            AdamW for everything by default.

    Raises:
        `ValueError`: if a value is out of its range, or the loss is unknown.
    """

    num_unrolls: int | None = field(
        default=None,
        metadata={"help": "Tokens the head is unrolled on its own outputs (default: 7; 1 for EAGLE-1 heads)."},
    )
    unroll_decay: float | None = field(
        default=None, metadata={"help": "Weight of unroll i is unroll_decay ** i (default: 0.8; 1 for EAGLE-1 heads)."}
    )
    loss: str = field(
        default="cross_entropy",
        metadata={"help": "Loss between the draft's and the target's distribution.", "choices": list(LOSSES)},
    )
    feature_loss_weight: float = field(default=1.0, metadata={"help": "EAGLE-1: weight of the loss on features."})
    logit_loss_weight: float = field(default=0.1, metadata={"help": "EAGLE-1: weight of the loss on distributions."})
    feature_noise: float | None = field(
        default=None,
        metadata={"help": "Uniform noise on features, from minus to plus this (default: 0; 0.1 for EAGLE-1 heads)."},
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Muon for the matrices inside the head, at this learning rate (default: AdamW)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, got {self.loss!r}.")
        if self.num_unrolls is not None and self.num_unrolls < 1:
            raise ValueError(f"`num_unrolls` must be at least 1, got {self.num_unrolls}.")
        for name in ("unroll_decay", "feature_noise", "feature_loss_weight", "logit_loss_weight", "muon_learning_rate"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        # `TrainingArguments` fills in the loss where a best model is wanted and no metric was named.
        wants_best = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        if wants_best and getattr(self, "metric_for_best_model", None) in (None, "loss"):
            self.metric_for_best_model: str | None = "simulated_acceptance_length"
            self.greater_is_better: bool | None = True
