"""
What llama.cpp converts to GGUF: `python convert_hf_to_gguf.py DIRECTORY --target-model-dir TARGET`. Write only: such a
directory is a SafeTensors head in plain `layers.0.*`.
"""

from typing import Any

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from .flat_config import flat_config
from .traits import refuse, usual_number_of_layers
from .vocabulary import draft_vocabulary


logger = logging.get_logger(__name__)


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: str | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    A head as llama.cpp's converter reads it.

    Raises:
        `ValueError`: if llama.cpp has no code for this head.
    """
    known = {"norm_before_residual", "fc_norm", "norm_output", "narrow", "no_lm_head", "features"}
    refuse(config, "llama.cpp", known, "its `eagle3` architecture is one Llama layer with norms of features at most")
    ids = config.feature_layer_ids
    if ids is not None and min(ids) < 0:
        raise ValueError(f"The head reads `hidden_states` {ids}, and llama.cpp reads outputs of layers only, not -1.")
    flat = flat_config(config, weights, "LlamaForCausalLMEagle3", target)
    flat |= {"norm_before_residual": config.norm_before_residual, "fc_norm": config.fc_norm}
    flat |= {"norm_output": config.norm_output, "target_hidden_size": config.target_hidden_size}
    if ids is not None:
        flat |= {"eagle_aux_hidden_state_layer_ids": ids, "num_aux_hidden_states": len(ids)}
        if usual_number_of_layers(ids) is None:
            logger.warning(
                f"The head reads `hidden_states` {ids}, other ones than usual. Check that `eagle3.extract_layers` of "
                "the GGUF file says so after the conversion."
            )
    return flat, draft_vocabulary(config, weights)
