"""What is compared: chains of drafted tokens by where they start, and how many of them an engine drafts as we do."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from eagle_hf import DraftOptions, EagleDraftModel


LENGTH = 3  # of the chains


def chains_by_start(text: list[int], steps: list[list[int]]) -> dict[int, list[int]]:
    """
    Drafts by the number of tokens of the text that were known before them.

    Args:
        text (`list[int]`): New tokens; the first one comes from reading the prompt.
        steps (`list[list[int]]`): What was drafted after each verification, in order.

    Returns:
        `dict[int, list[int]]`: Only of chains that the text was long enough to accept whole.
    """
    found, start = {}, 1
    for drafts in steps:
        if start + len(drafts) > len(text):
            break
        found[start] = drafts
        accepted = next((i for i, token in enumerate(drafts) if token != text[start + i]), len(drafts))
        start += accepted + 1
    return found


def our_drafts(
    target: PreTrainedModel, draft: EagleDraftModel, prompts: list[list[int]], num_tokens: int
) -> list[dict[str, list]]:
    """Texts and drafts of ours, per prompt `{"tokens": [...], "steps": [[...], ...]}`, greedy, with chains of three."""
    options = DraftOptions(
        num_assistant_tokens=LENGTH, draft_depth=LENGTH, draft_tree="chain", draft_retrieval=0, output_draft_trees=True
    )
    draft.generation_config = options.to_generation_config()
    target.generation_config.eos_token_id = None  # all texts have the same length
    found = []
    for prompt in prompts:
        output = target.generate(
            torch.tensor([prompt]), assistant_model=draft, max_new_tokens=num_tokens, do_sample=False,
            return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        trees = [tree.tokens[0].tolist()[1:] for tree, _ in output.draft_trees]
        found.append({"tokens": output.sequences[0, len(prompt) :].tolist(), "steps": trees})
    return found


@dataclass(frozen=True)
class Agreement:
    """
    Args:
        texts (`int`): Prompts to which both wrote the same text.
        identical (`int`): Chains that both drafted alike, token for token.
        compared (`int`): Chains of full length that start at the same token in both.
        accepted (`list[int]`): How many of the engine's compared chains were accepted up to each position.
    """  # noqa: D205

    texts: int
    identical: int
    compared: int
    accepted: list[int]

    @property
    def is_whole(self) -> bool:
        """Whether nothing differs, and there was something to compare."""
        return self.identical == self.compared > 0


def compare(ours: list[dict[str, list]], theirs: list[dict[str, list]]) -> Agreement:
    """Compare what two sides wrote and drafted to the same prompts."""
    texts = identical = compared = 0
    accepted = [0] * LENGTH
    for our, their in zip(ours, theirs, strict=True):
        texts += our["tokens"] == their["tokens"]
        first, second = (chains_by_start(side["tokens"], side["steps"]) for side in (our, their))
        for start in first.keys() & second.keys():
            if len(first[start]) == len(second[start]) == LENGTH:
                compared += 1
                identical += first[start] == second[start]
                right = [drafted == true for drafted, true in zip(second[start], their["tokens"][start:], strict=False)]
                for i in range(LENGTH):
                    accepted[i] += all(right[: i + 1])
    return Agreement(texts, identical, compared, accepted)
