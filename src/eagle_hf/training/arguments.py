"""Arguments of training a head."""

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from .losses import LOSSES


_NOT_COMPILED = (
    "it would compile the objective with its unrolls as a whole; tried with PyTorch 2.13 (inductor, eager), that ends "
    "in an error inside of `torch.compile`"
)
# Options of `TrainingArguments` that a head cannot be trained with, and why; they are refused unless left as they are.
_REFUSED = {
    "label_smoothing_factor": "a head learns the target's distribution, which has no labels to smooth; see `loss`",
    "label_names": "batches have no labels; what is trained stands in their `loss_mask`",
    "neftune_noise_alpha": "the embedding is the target's and stays as it is; `feature_noise` is the noise of a head",
    "use_liger_kernel": "its kernels are for models that compute a loss from labels",
    "liger_kernel_config": "its kernels are for models that compute a loss from labels",
    "torch_compile": _NOT_COMPILED,
    "torch_compile_backend": _NOT_COMPILED,
    "torch_compile_mode": _NOT_COMPILED,
    "fp16_full_eval": "evaluating would round the head's weights for good; `fp16=True` evaluates in half precision",
    "bf16_full_eval": "evaluating would round the head's weights for good; `bf16=True` evaluates in half precision",
    "include_for_metrics": "evaluation computes its figures itself and hands nothing to a `compute_metrics`",
    "batch_eval_metrics": "evaluation computes its figures itself and hands nothing to a `compute_metrics`",
    "parallelism_config": "a head is small: processes divide the texts (DDP, FSDP), a `device_map` spreads the target",
}
_MUON_GOES_WITH = {"adamw_torch", "adamw_torch_fused"}


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
        `ValueError`:
            if a value is out of its range, the loss is unknown, or an option of `TrainingArguments` is set with which a
            head cannot be trained; says why.
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
        named_metric = self.metric_for_best_model
        for option in fields(self):
            # `TrainingArguments` reads some of these and may say less clearly that they do not work.
            if option.name in _REFUSED and getattr(self, option.name) and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"`{option.name}={getattr(self, option.name)!r}` does not go with training a head: "
                    f"{_REFUSED[option.name]}. Leave it out."
                )
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, got {self.loss!r}.")
        if self.num_unrolls is not None and self.num_unrolls < 1:
            raise ValueError(f"`num_unrolls` must be at least 1, got {self.num_unrolls}.")
        for name in ("unroll_decay", "feature_noise", "feature_loss_weight", "logit_loss_weight", "muon_learning_rate"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        self._check_checkpointing()
        self._check_optimizer()
        wants_best = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        if wants_best and named_metric is None:  # `TrainingArguments` fills in the loss
            self.metric_for_best_model: str | None = "simulated_acceptance_length"
            self.greater_is_better: bool | None = True

    def _check_checkpointing(self) -> None:
        """Checks that unrolls are checkpointed one by one, in the one way there is."""
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            options: dict[str, Any] = getattr(self, name, None) or {}
            if other := {key: value for key, value in options.items() if (key, value) != ("use_reentrant", False)}:
                raise ValueError(
                    f"`{name}={options!r}`: of a head every unroll is checkpointed, without `use_reentrant`; {other} "
                    "would change nothing. Leave it out."
                )

    def _check_optimizer(self) -> None:
        """
        Checks that no other optimizer is asked for beside Muon, which brings its own AdamW for the other parameters.
        """
        if self.muon_learning_rate is None:
            return
        optim = str(getattr(self.optim, "value", self.optim))
        given = {} if optim in _MUON_GOES_WITH else {"optim": optim}
        for name in ("optim_args", "optim_target_modules"):
            if getattr(self, name):
                given[name] = getattr(self, name)
        if given:
            pairs = ", ".join(f"`{name}={value!r}`" for name, value in given.items())
            raise ValueError(
                f"{pairs} and `muon_learning_rate={self.muon_learning_rate}` exclude each other: the matrices inside "
                "the head are trained with Muon and all else with AdamW. Leave one of them out."
            )
