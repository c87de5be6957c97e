"""
What can be verified on a decoder, tried out: the verdict of the run-time probe, and the text with drafts against plain
`generate`.
"""

from unittest import mock

import torch
from doubles import ScriptedChainDrafter, ScriptedDrafter, random_draft
from transformers import DynamicCache, PreTrainedModel

from eagle_hf import EagleDraftModel
from eagle_hf.target.features import layers_in_order
from eagle_hf.target.forward import cache_argument
from eagle_hf.target.probe import can_verify_trees
from eagle_hf.target.recurrent import has_recurrent_state


TREES, CHAINS, RECURRENT, REFUSED = "trees", "chains", "chains, recurrent", "refused"
NEW_TOKENS = 14
PROMPTS = {
    "input_ids": torch.tensor([[5, 17, 3, 60, 41, 8, 77, 23, 9, 30, 12], [0, 0, 0, 44, 7, 19, 80, 6, 31, 4, 52]])
}
PROMPTS["attention_mask"] = (PROMPTS["input_ids"] != 0).long()


# Targets with several streams of hidden states: a draft can read the last one, where they have come together.
SEVERAL_STREAMS = {"gemma3n_text", "hy_v4", "qwen4_exp_text"}


def fitting_draft(target: PreTrainedModel) -> EagleDraftModel:
    """A random head for a target."""
    return random_draft(target, eagle_version=1 if target.config.model_type in SEVERAL_STREAMS else 3)


def verdict(target: PreTrainedModel) -> tuple[str, str]:
    """What the target verifies, and for one that is refused the reason."""
    try:
        target.generate(
            PROMPTS["input_ids"][:1], max_new_tokens=2, do_sample=False, assistant_model=fitting_draft(target)
        )
    except ValueError as error:
        return REFUSED, str(error)
    if can_verify_trees(target):
        return TREES, ""
    cache = DynamicCache(config=target.config)
    with torch.no_grad():
        target(PROMPTS["input_ids"][:1], use_cache=True, **{cache_argument(target): cache})
    return RECURRENT if has_recurrent_state(cache) else CHAINS, ""


def features_agree(target: PreTrainedModel) -> bool:
    """Whether layers that are read directly, if they are, give the hidden states that the target returns."""
    layers, outputs = layers_in_order(target), []
    if not layers:
        return True
    hooks = [layer.register_forward_hook(lambda _, args, output: outputs.append(output)) for layer in layers]
    with torch.no_grad():
        hidden_states = target(PROMPTS["input_ids"][:1], output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    outputs = [output[0] if isinstance(output, tuple) else output for output in outputs][:-1]  # the last is normed
    return all(torch.equal(x, y) for x, y in zip(outputs, hidden_states[1:-1], strict=True))


def texts(target: PreTrainedModel, verifies: str, rows: int = 1, seed: int = 0, **kwargs) -> tuple[torch.Tensor, ...]:
    """Plain text, text with drafts that are partly right, and how many forwards the target needed for it."""
    inputs = {name: tensor[:rows] for name, tensor in PROMPTS.items()}
    kwargs = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "return_dict_in_generate": True} | kwargs
    torch.manual_seed(seed)
    plain = target.generate(**inputs, **kwargs).sequences
    truth = plain[:, inputs["input_ids"].shape[1] :].tolist()
    drafter = (ScriptedDrafter if verifies == TREES else ScriptedChainDrafter)(truth, seed)
    torch.manual_seed(seed)
    with mock.patch("eagle_hf.generation.decoding.open_drafter", return_value=drafter):
        ours = target.generate(**inputs, **kwargs, assistant_model=fitting_draft(target))
    return plain, ours.sequences, ours.target_forwards
