"""Training a head with [`~transformers.Trainer`]."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..modeling_eagle import EagleDraftModel
from ..versions import hidden_states_argument
from .training_time_test import training_time_test_loss


@dataclass
class EagleTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what EAGLE adds.

    Args:
        num_unrolls (`int`, *optional*, defaults to 7): Steps of the training-time test.
        unroll_decay (`float`, *optional*, defaults to 0.8): Weight of unroll `i` is `unroll_decay ** i`.
    """

    num_unrolls: int = field(default=7, metadata={"help": "Steps of the training-time test."})
    unroll_decay: float = field(default=0.8, metadata={"help": "Weight of unroll i is unroll_decay ** i."})


class EagleTrainer(Trainer):
    """
    Trains an EAGLE-3 head against a frozen target in the same process.

    Args:
        model ([`EagleDraftModel`]): The head.
        target ([`~transformers.PreTrainedModel`]): The target. It is never changed.
        args ([`EagleTrainingArguments`]): Training arguments.
        kwargs: Further arguments of [`~transformers.Trainer`]. Samples of the dataset hold `input_ids`, `loss_mask`
            (1 where the text is trained) and, where there is padding, `attention_mask`, all of shape `(seq_len,)`.
    """

    def __init__(
        self, model: EagleDraftModel, target: PreTrainedModel, args: EagleTrainingArguments | None = None, **kwargs: Any
    ):
        args = args if args is not None else EagleTrainingArguments()
        args.remove_unused_columns = False  # the columns are those of `compute_loss`, not of the head's `forward`
        super().__init__(model=model, args=args, **kwargs)
        self.target = target.eval().to(self.args.device)
        num_layers = target.config.get_text_config(decoder=True).num_hidden_layers
        self._feature_layer_ids = model.config.resolve_feature_layer_ids(num_layers)
        self._step_accuracies: list[torch.Tensor] = []
        if model.embed_tokens is not None:
            model.embed_tokens.requires_grad_(False)

    def compute_loss(
        self, model: EagleDraftModel, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Features and logits of the target, then the loss of the head."""
        with torch.no_grad():
            outputs = self.target(
                inputs["input_ids"],
                attention_mask=inputs.get("attention_mask"),
                output_hidden_states=hidden_states_argument(self._feature_layer_ids),
                use_cache=False,
            )
            features = torch.cat([outputs.hidden_states[i] for i in self._feature_layer_ids], dim=-1)
        result = training_time_test_loss(
            model,
            features,
            inputs["input_ids"],
            outputs.logits,
            inputs["loss_mask"],
            self.target.get_input_embeddings(),
            attention_mask=inputs.get("attention_mask"),
            num_steps=self.args.num_unrolls,
            step_decay=self.args.unroll_decay,
        )
        self._step_accuracies.append(result.step_accuracies)
        return (result.loss, result) if return_outputs else result.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the accuracy of each unroll, and the acceptance length of a chain that it stands for."""
        if self._step_accuracies and "loss" in logs:
            accuracies = torch.stack(self._step_accuracies).mean(0)
            self._step_accuracies.clear()
            logs |= {f"accuracy_{i}": round(float(accuracy), 4) for i, accuracy in enumerate(accuracies)}
            logs["simulated_acceptance_length"] = round(1 + float(accuracies.cumprod(0).sum()), 4)
        super().log(logs, *args, **kwargs)
