"""The target in training: what a head learns from it. It is never changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_eagle import EagleConfig
from ..target.config import TargetConfig
from ..target.features import FeatureReader
from ..target.modules import input_device, is_placed_by_hooks, lent_embedding, lent_lm_head
from ..versions import hidden_states_argument


@dataclass(frozen=True)
class TargetSignal:
    """
    Holds what the target says of a batch of texts.

    Args:
        features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * hidden_size)`): What the head reads.
        logits (`torch.Tensor` of shape `(batch_size, seq_len, vocab_size)` or `Callable`):
            Scores of the next token; or what computes those of positions, given as indices of shape `(n,)` into the
            flattened batch.
    """

    features: torch.Tensor
    logits: torch.Tensor | Callable[[torch.Tensor], torch.Tensor]


class FrozenTarget:
    """
    Computes what heads learn from with a target that is not trained.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target. It is moved to `device`, unless it is there already or hooks of `accelerate` place it (a
            `device_map`, `cpu_offload`, `disk_offload`).
        config ([`EagleConfig`]): Configuration of the head, which says what it reads.
        device (`torch.device`): Where the head is.
    """

    def __init__(self, model: PreTrainedModel, config: EagleConfig, device: torch.device):
        self.model = model.eval()
        self.device = device
        self.reader = FeatureReader(model, config)
        if input_device(model) != device and not is_placed_by_hooks(model):
            model.to(device)
        self._embedding, self._lm_head = lent_embedding(model, device), lent_lm_head(model, device)
        self.num_layers = TargetConfig(model.config).num_layers
        self.feature_layer_ids = config.feature_sources(self.num_layers)

    @torch.no_grad()
    def read(self, inputs: dict[str, Any]) -> TargetSignal:
        """
        Runs the target, or takes its features from the batch if they were computed before.

        Args:
            inputs (`dict`):
                `input_ids` of shape `(batch_size, seq_len)`, and where there are any `attention_mask`, or
                `position_ids` that restart with every packed text. Or `features` and `last_hidden_states` of shape
                `(batch_size, seq_len, size)`.
        """
        if "features" in inputs:
            last_hidden_states = inputs["last_hidden_states"].flatten(0, 1)
            return TargetSignal(inputs["features"], lambda rows: self.lm_head(last_hidden_states[rows]))
        features, _, logits = self.compute(inputs)
        return TargetSignal(features, logits)

    @torch.no_grad()
    def compute(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns the features, last hidden states and logits of a batch, of shape `(batch_size, seq_len, size)` each.

        Raises:
            `ValueError`: if the target returns no hidden states.
        """
        given = {name: inputs[name] for name in ("attention_mask", "position_ids") if inputs.get(name) is not None}
        with self.reader:
            outputs = self.model(
                inputs["input_ids"],
                **given,
                output_hidden_states=hidden_states_argument(sorted({*self.reader.layer_ids, self.num_layers})),
                use_cache=False,
            )
        if outputs.hidden_states is None:
            raise ValueError(
                f"{type(self.model).__name__} returned no `hidden_states`, although they were asked for; a head learns "
                "from them. Use a target that supports `output_hidden_states`."
            )
        states = self.reader.states(outputs.hidden_states)
        features = self.reader.concatenate(states, self.device)
        last = outputs.hidden_states[self.num_layers].to(self.device)
        if last.dim() != states[0].dim():  # several streams, of which a head reads what has come of them
            last = states[self.reader.layer_ids.index(self.num_layers)].to(self.device)
        return features, last, outputs.logits.to(self.device)

    def embed_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns embeddings of tokens, of shape `(..., hidden_size)`."""
        return self._embedding(token_ids).detach()

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Returns the logits of hidden states after the final norm, of shape `(..., vocab_size)`; gradients pass through.

        Raises:
            `ValueError`: if the target has no `lm_head`.
        """
        if self._lm_head is None:
            raise ValueError(
                f"{type(self.model).__name__} has no `lm_head` (`get_output_embeddings` is `None`), which logits of "
                "stored features and heads without an `lm_head` of their own need. Use a target with one."
            )
        return self._lm_head(hidden_states)
