"""On which device a target takes its input, whatever hooks move its weights about."""

import torch
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """
    The device on which the target's embedding runs. With weights offloaded to the disk or the CPU (`device_map`), hooks
    of `accelerate` bring them there for each forward; until then they are on the "meta" device, which holds no data.
    """
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        if getattr(each, "execution_device", None) is not None:
            return torch.device(each.execution_device)
    return embedding.weight.device
