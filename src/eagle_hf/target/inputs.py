"""Finds what plain `generate` passes to every forward besides tokens, positions, mask and cache."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..versions import CACHE_NAMES


# What a verification makes itself.
_OWN = {
    "input_ids", "inputs_embeds", "position_ids", "attention_mask", "use_cache", *CACHE_NAMES,
    "cache_position", "logits_to_keep", "return_dict", "output_hidden_states", "output_attentions",
}  # fmt: skip
_PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


class StepInputs:
    """
    Further arguments of the target's forward: those that the caller of `generate` gave (it hands all that it does not
    know to every forward), and those that a target prepares for itself. Images are among them in the prefill only.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_len)`): The prompt.
        model_kwargs (`dict`): As prepared by `generate`.
        outputs ([`~transformers.modeling_outputs.ModelOutput`]): What the prefill returned.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: torch.Tensor, model_kwargs: dict[str, Any], outputs: ModelOutput
    ):
        kwargs = model._update_model_kwargs_for_generation(outputs, dict(model_kwargs))
        kwargs.pop("inputs_embeds", None)
        # The step that plain `generate` would take now: which token it is does not matter.
        ids = torch.cat([input_ids, input_ids.new_zeros(len(outputs.logits), 1)], dim=1)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, is_first_iteration=False, **kwargs)
        self._inputs = {name: value for name, value in inputs.items() if name not in _OWN and value is not None}

    def for_nodes(self, num_nodes: int) -> dict[str, Any]:
        """Returns the arguments for a forward over so many nodes per row."""
        inputs = dict(self._inputs)
        for name in _PER_TOKEN:
            if name in inputs:  # all nodes are text, as the newest token is
                inputs[name] = inputs[name][..., -1:].expand(*inputs[name].shape[:-1], num_nodes)
        return inputs
