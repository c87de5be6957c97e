"""
Writes what llama.cpp converts to GGUF: `python convert_hf_to_gguf.py DIRECTORY --target-model-dir TARGET`. Write only:
such a directory is a SafeTensors head in plain `layers.0.*`. What is refused and written follows from runs of the
llama.cpp of `llama_cpp_python` 0.3.36; tests/checkpoints/test_llama_cpp.py holds their results.
"""

from typing import Any

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from .export_target import ExportTarget
from .feature_layers import refuse_after_norm
from .flat_config import flat_config
from .traits import refuse, usual_number_of_layers
from .vocabulary import draft_vocabulary


logger = logging.get_logger(__name__)


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as llama.cpp's converter reads it.

    Raises:
        `ValueError`: if llama.cpp has no code for this head.
    """
    known = {"norm_before_residual", "norm_before_fc", "narrow", "no_lm_head"}
    why = "its `eagle3` architecture is one Llama layer that reads three hidden states, normalised together at most"
    refuse(config, "llama.cpp", known, why)
    ids = config.feature_layer_ids  # in any order: llama.cpp keeps it
    refuse_after_norm(ids, "llama.cpp")
    flat = flat_config(config, weights, "LlamaForCausalLMEagle3", target.name)
    flat |= {"norm_before_residual": config.norm_before_residual, "norm_before_fc": config.norm_before_fc}
    # The converter knows a head by its draft vocabulary, also where that is the target's.
    flat |= {"target_hidden_size": config.target_hidden_size}
    flat |= {"draft_vocab_size": config.draft_vocab_size or config.vocab_size}
    if ids is not None:
        _check_last_layer(ids, target.num_layers)
        flat |= {"eagle_aux_hidden_state_layer_ids": ids, "num_aux_hidden_states": len(ids)}
    return flat, draft_vocabulary(config, weights)


def _check_last_layer(ids: list[int], num_target_layers: int | None) -> None:
    if num_target_layers is None and usual_number_of_layers(sorted(ids)) is None:
        logger.warning(
            f"The head reads `hidden_states` {ids}, other ones than usual. If the target has {max(ids)} layers, "
            "llama.cpp drafts wrongly with this head: it never fills the output of the last layer before the final "
            "norm. Pass the folder of the target as `target` to have it checked."
        )
    if num_target_layers == max(ids):
        raise ValueError(
            f"The head reads `hidden_states` {ids}, and its target has {num_target_layers} layers. llama.cpp never "
            "fills the output of the last layer before the final norm, and would draft wrongly. vLLM reads it: export "
            "to `vllm`."
        )
