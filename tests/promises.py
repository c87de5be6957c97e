"""What tests of the promise share: prompts, targets, and a text with and without a draft."""

import functools

import torch
from architectures import VOCAB_SIZE, tiny_target
from doubles import ScriptedDrafter, random_draft, scripted


PROMPT_LENGTHS = (13, 4, 9, 16)
NEW_TOKENS = 24

target_of = functools.lru_cache(maxsize=None)(tiny_target)


def left_padded_prompts(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(3, VOCAB_SIZE, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def with_and_without_draft(monkeypatch, target, inputs, seed=0, drafter_seed=0, draft=None, **kwargs):
    """Plain output, output with a scripted draft, and the generator states that both left."""
    kwargs = {"max_new_tokens": NEW_TOKENS, "return_dict_in_generate": True} | kwargs
    outputs, states = [], []
    for assistant in (None, draft if draft is not None else random_draft(target)):
        if assistant is not None:
            prompt_length = inputs["input_ids"].shape[1]
            truth = outputs[0].sequences[:, prompt_length:].tolist()
            scripted(monkeypatch, lambda truth=truth: ScriptedDrafter(truth, drafter_seed))
        torch.manual_seed(seed)
        outputs.append(target.generate(**inputs, assistant_model=assistant, **kwargs))
        states.append(torch.get_rng_state())
    return *outputs, *states


def an_eos_token(target, inputs, **kwargs):
    """A token that plain generation reaches, in different rows at different times."""
    torch.manual_seed(0)
    tokens = target.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=None, **kwargs)
    new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    first_seen = {token: new.index(token) for token in new}
    return max(new, key=lambda token: min(first_seen[token], NEW_TOKENS - 4))
