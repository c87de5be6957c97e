"""Defines what `generate(..., return_dict_in_generate=True)` returns with an EAGLE draft."""

from dataclasses import dataclass
from typing import NamedTuple

from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..drafting.auto_size import TreeSizing
from ..tree import DraftTree
from ..versions import CACHE, cache_of


class DraftStep(NamedTuple):
    """
    Shows one verification.

    Args:
        tree ([`DraftTree`]): The verified trees, a row each.
        accepted (`list[list[int]]`): Per row the nodes that were accepted, the root first.
    """

    tree: DraftTree
    accepted: list[list[int]]


@dataclass
class EagleGenerateOutput(GenerateDecoderOnlyOutput):
    """
    Everything that plain `generate` returns, and what drafting did.

    The acceptance length of the EAGLE papers, tau, is the mean of `acceptance_lengths`.

    Args:
        acceptance_lengths (`list[list[int]]`, *optional*):
            Per row, the tokens that each verification added: accepted drafts and the target's own next token. The very
            first new token comes from the prompt and belongs to no verification.
        target_forwards (`int`, *optional*): Forwards of the target, the prompt's included.
        draft_forwards (`int`, *optional*): Forwards of the draft.
        draft_trees (`list[DraftStep]`, *optional*):
            The trees of every step and their accepted nodes. Returned where `output_draft_trees` is `True`, in the call
            or in `draft.generation_config`.
        tree_sizing ([`TreeSizing`], *optional*):
            For `draft_tree = "auto"`: how the trees were sized; its `report()` says it in a sentence.
    """

    acceptance_lengths: list[list[int]] | None = None
    target_forwards: int | None = None
    draft_forwards: int | None = None
    draft_trees: list[DraftStep] | None = None
    tree_sizing: TreeSizing | None = None
    if CACHE != "cache":
        cache = property(cache_of)  # before 5.24, readers may use the new word, too


class History:
    """
    Records what happened in the steps of a call.

    Args:
        batch_size (`int`): Rows of the batch.
        keeps_trees (`bool`): Whether to keep the draft trees.
    """

    def __init__(self, batch_size: int, keeps_trees: bool):
        self.acceptance_lengths: list[list[int]] = [[] for _ in range(batch_size)]
        self.trees: list[DraftStep] | None = [] if keeps_trees else None

    def add(self, tree: DraftTree, paths: list[list[int]], open_rows: list[int]) -> None:
        """Records a step: its trees, the accepted nodes, and the rows that had not finished before it."""
        for row in open_rows:
            self.acceptance_lengths[row].append(len(paths[row]))
        if self.trees is not None:  # as ordinary tensors: trees are grown in inference mode
            tensors = (tree.tokens.clone(), tree.parents.clone(), tree.depths.clone(), tree.scores.clone())
            self.trees.append(DraftStep(DraftTree(*tensors, tree.max_depth), paths))
