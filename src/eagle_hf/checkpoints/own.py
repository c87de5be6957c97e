"""Our own layout: what `EagleDraftModel.save_pretrained` writes."""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from .head import Head


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the configuration is one of ours."""
    # Early vLLM had configurations of the same type, with the head's own one inside.
    return config.get("model_type") == EagleConfig.model_type and not isinstance(config.get("model"), dict)


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """Returns our configuration and tensors as they are."""
    return Head(EagleConfig.from_dict(config), weights)
