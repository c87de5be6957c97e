"""
Growing a draft tree with the head.

The head keeps keys and values of rows with true target features only. To grow a tree it appends rows with its own
guesses for the features, level by level, and forgets them when the tree is done:

```text
cache of the head   (f0,t1) (f1,t2) ... (f[n-1],root) | level 0: K rows | level 1: K rows | ...
                    true features, stays               guesses, cut off after the tree is grown
```

All `K` rows of a level stand at the same rotary position and see the true rows and their own ancestors.
"""

from collections.abc import Callable, Sequence

import torch

from .draft_options import DraftOptions
from .kv_cache import GrowingCache, keep_nodes
from .modeling_eagle import EagleDraftModel, RotaryEmbedding
from .static_plan import StaticPlan
from .tree import DraftTree


class Drafter:
    """
    What one `generate` call knows about its draft: the head's cache, and the state that the next tree grows from.
    Nothing is stored on the head itself, so that several calls may share it.

    Args:
        draft ([`EagleDraftModel`]): The head.
        options ([`DraftOptions`]): The shape of the tree.
        embed_tokens (`Callable`): Target token ids to embeddings, used where the head has no embedding of its own.
        lm_head (`Callable`): Hidden states to target logits, used where the head has no `lm_head` of its own.
    """

    def __init__(
        self,
        draft: EagleDraftModel,
        options: DraftOptions,
        embed_tokens: Callable[[torch.Tensor], torch.Tensor],
        lm_head: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.draft = draft
        self.options = options
        self.embed_tokens = embed_tokens if draft.embed_tokens is None else draft.embed_tokens
        self.compute_logits = lm_head if draft.lm_head is None else draft.compute_logits
        self.cache = GrowingCache()
        self.num_forwards = 0
        self._static_plans: dict[int, StaticPlan] = {}  # by depth limit
        self.lengths: list[int] = []  # committed columns of the head's cache, per row
        self.prompt_mask: torch.Tensor | None = None  # (batch_size, prompt_len), None where the prompt has no padding
        self.last_hidden: torch.Tensor | None = None  # (batch_size, 1, hidden_size): output at the newest true feature
        self.root_position: torch.Tensor | None = None  # (batch_size, 1): rotary position of level 0

    # ------------------------------------------------------------------ true features

    def extend(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        counts: Sequence[int],
        prompt_mask: torch.Tensor | None = None,
    ) -> None:
        """
        Append rows with true features of the target.

        Args:
            features (`torch.Tensor` of shape `(batch_size, new_len, num_features * target_hidden_size)`):
                Features of newly committed tokens.
            tokens (`torch.LongTensor` of shape `(batch_size, new_len)`): The token that follows each of them.
            positions (`torch.LongTensor` of shape `(batch_size, new_len)`): Positions of the features.
            counts (`Sequence[int]` of length `batch_size`): How many of the `new_len` columns are real, row by row.
            prompt_mask (`torch.BoolTensor` of shape `(batch_size, new_len)`, *optional*):
                Only for the prompt: `False` where it is padding.
        """
        if prompt_mask is not None:
            self.prompt_mask = prompt_mask
        new_len = tokens.shape[1]
        self.lengths = self.lengths or [0] * len(counts)
        hidden = self._step(
            self.draft.project_features(features.to(self.draft.dtype)),
            self.embed_tokens(tokens),
            self._rotary(positions),
            self._extension_mask(new_len),
        )  # (batch_size, new_len, hidden_size)
        self.lengths = keep_nodes(self.cache, self.lengths, [range(count) for count in counts], new_len)
        last = torch.tensor([max(count - 1, 0) for count in counts], device=hidden.device)[:, None]
        self.last_hidden = _take(hidden, last)
        self.root_position = _take(positions, last) + 1

    def _extension_mask(self, new_len: int) -> torch.Tensor | None:
        past_len = max(self.lengths)
        if self.prompt_mask is None and min(self.lengths) == past_len and (new_len == 1 or past_len == 0):
            return None
        causal = torch.ones(new_len, new_len, dtype=torch.bool, device=self.draft.device).tril()
        if past_len == 0 and self.prompt_mask is not None:
            causal = causal & (self.prompt_mask[:, None] | torch.eye(new_len, dtype=torch.bool, device=causal.device))
        visible = self._visible_columns()  # (batch_size, past_len)
        new = causal.expand(len(self.lengths), new_len, new_len)
        return torch.cat([visible[:, None].expand(-1, new_len, -1), new], dim=-1)[:, None]

    def _visible_columns(self) -> torch.Tensor:
        """Which committed columns hold a true row, of shape `(batch_size, past_len)`."""
        past_len = max(self.lengths)
        if min(self.lengths) == past_len:
            visible = torch.ones(len(self.lengths), past_len, dtype=torch.bool, device=self.draft.device)
        else:
            lengths = torch.tensor(self.lengths, device=self.draft.device)[:, None]
            visible = torch.arange(past_len, device=self.draft.device) < lengths
        if self.prompt_mask is not None and past_len > 0:
            visible[:, : self.prompt_mask.shape[1]] &= self.prompt_mask
        return visible

    def _rotary(self, positions: torch.Tensor) -> RotaryEmbedding:
        return self.draft.rotary_emb(self.draft.fc.weight, positions)

    def _step(
        self, hidden: torch.Tensor, embeds: torch.Tensor, rotary: RotaryEmbedding, mask: torch.Tensor | None
    ) -> torch.Tensor:
        self.num_forwards += 1
        return self.draft.step(hidden, embeds.to(hidden.dtype), rotary, mask, self.cache)

    # ------------------------------------------------------------------ trees

    @torch.no_grad()
    def grow(self, roots: torch.Tensor, max_depth: int) -> DraftTree:
        """
        Grow the trees of the next step. The cache is left as it was.

        Args:
            roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
            max_depth (`int`): Deepest level that can still be used; deeper ones would exceed the length limit.

        Returns:
            [`DraftTree`]
        """
        if max_depth < 1:
            return DraftTree.root_only(roots)
        if self.options.draft_tree == "static":
            tree = self._grow_static(roots, max_depth)
        else:
            tree = self._grow_dynamic(roots, min(max_depth, self.options.draft_depth))
        keep_nodes(self.cache, self.lengths, [()] * len(self.lengths), num_nodes=0)
        return tree

    def _grow_dynamic(self, roots: torch.Tensor, depth: int) -> DraftTree:
        """
        EAGLE-2: expand the `width` likeliest nodes of each level by their `width` likeliest children, then keep the
        `num_assistant_tokens` likeliest of all. A chain is the case of width 1.

        Candidates are numbered as they come: 0 the root, then `width` children of it, then `width ** 2` per level. As
        no child is likelier than its parent, or numbered before it, taking the likeliest first and the lower number
        among equals never takes a child without its parent.
        """
        width = 1 if self.options.draft_tree == "chain" else self.options.draft_width
        rotary = self._rotary(self.root_position + torch.arange(depth, device=roots.device))
        scores, beams = self._top_children(self.last_hidden, width)  # (batch_size, 1, width)
        scores, beams = scores[:, 0], beams[:, 0]  # (batch_size, width)
        width = beams.shape[1]  # less than asked for if the draft vocabulary is tiny
        num_nodes = 1 + self.options.num_assistant_tokens
        beam_ids = torch.arange(1, width + 1, device=roots.device).expand_as(beams)

        all_tokens, all_parents = [roots[:, None], beams], [torch.full_like(beams[:, :1], -1), torch.zeros_like(beams)]
        all_scores = [torch.zeros_like(scores[:, :1]), scores]
        hidden = self.last_hidden.expand(-1, width, -1)
        itself = torch.eye(width, dtype=torch.bool, device=roots.device).expand(len(roots), width, width)
        visible = self._visible_columns()[:, None].expand(-1, width, -1)  # (batch_size, width, columns so far)

        for level in range(depth - 1):
            visible = torch.cat([visible, itself], dim=-1)
            cos, sin = rotary[0][:, level : level + 1], rotary[1][:, level : level + 1]
            hidden = self._step(hidden, self.embed_tokens(beams), (cos, sin), visible[:, None])
            child_scores, children = self._top_children(hidden, width)  # (batch_size, width, width)
            child_scores = (child_scores + scores[..., None]).flatten(1)  # (batch_size, width ** 2)
            children = children.flatten(1)
            all_tokens.append(children)
            all_parents.append(beam_ids.repeat_interleave(width, dim=1))
            all_scores.append(child_scores)
            if level == depth - 2:
                break
            scores, best = _largest(child_scores, width)
            if self._is_complete(all_scores, scores, num_nodes):
                break
            beams, beam_ids = _take(children, best), best + (1 + width + level * width**2)
            parent_beam = best // width
            hidden, visible = _take(hidden, parent_beam), _take(visible, parent_beam)

        flat_scores = torch.cat(all_scores, dim=1)  # (batch_size, num_candidates)
        chosen = _largest(flat_scores, min(num_nodes, flat_scores.shape[1]))[1].sort(dim=1).values
        parents = torch.searchsorted(chosen, _take(torch.cat(all_parents, dim=1), chosen))
        depths = (chosen - width - 1).div(width**2, rounding_mode="floor") + 2
        parents[:, 0], depths[:, 0] = -1, 0
        tokens = _take(torch.cat(all_tokens, dim=1), chosen)
        return DraftTree(tokens, parents, depths, _take(flat_scores, chosen), max_depth=len(all_scores) - 1)

    def _is_complete(self, all_scores: list[torch.Tensor], beam_scores: torch.Tensor, num_nodes: int) -> bool:
        """
        Whether deeper levels cannot enter the tree any more: it is full, and no beam is likelier than its last node, so
        that no descendant of a beam can be either. Stopping then changes nothing. Elsewhere than on a CPU the answer
        would cost a synchronisation per level, so that all levels are grown there.
        """
        if beam_scores.device.type != "cpu" or sum(scores.shape[1] for scores in all_scores) < num_nodes:
            return False
        last_scores = torch.cat(all_scores, dim=1).topk(num_nodes, dim=1).values[:, -1]  # (batch_size,)
        return bool((beam_scores[:, 0] <= last_scores).all())

    def _grow_static(self, roots: torch.Tensor, max_depth: int) -> DraftTree:
        """EAGLE-1: the same nodes in every step, each the child of a given rank; only nodes with children are expanded."""
        plan = self._static_plan(max_depth)
        rotary = self._rotary(self.root_position + torch.arange(len(plan.levels), device=roots.device))
        prefix = self._visible_columns()[:, None]  # (batch_size, 1, columns so far)
        hidden, tokens, scores = self.last_hidden, [roots[:, None]], [torch.zeros_like(roots[:, None], dtype=torch.float)]
        for depth, level in enumerate(plan.levels):
            if depth > 0:  # at depth 0 the output at the newest true feature is what the root's children come from
                expanded = tokens[-1][:, level.expanded]  # (batch_size, num_expanded)
                mask = torch.cat([prefix.expand(-1, len(level.expanded), -1), level.visible.expand(len(roots), -1, -1)], -1)
                cos, sin = rotary[0][:, depth - 1 : depth], rotary[1][:, depth - 1 : depth]
                hidden = self._step(hidden[:, level.parent_rows], self.embed_tokens(expanded), (cos, sin), mask[:, None])
            top_scores, top_tokens = self._top_children(hidden, level.num_ranks)
            tokens.append(top_tokens[:, level.rows, level.ranks])
            scores.append(top_scores[:, level.rows, level.ranks] + scores[-1][:, level.parents])
        parents, depths = (t.expand(len(roots), -1) for t in (plan.parents, plan.depths))
        return DraftTree(torch.cat(tokens, 1), parents, depths, torch.cat(scores, 1), max_depth=len(plan.levels))

    def _static_plan(self, max_depth: int) -> StaticPlan:
        if max_depth not in self._static_plans:
            self._static_plans[max_depth] = StaticPlan.make(self.options.static_paths, max_depth, self.draft.device)
        return self._static_plans[max_depth]

    def _top_children(self, hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The likeliest next tokens of each row of `hidden` of shape `(batch_size, num_rows, hidden_size)`: their
        log-probabilities in the draft vocabulary, float32, and target ids, both of shape `(batch_size, num_rows, width)`.
        """
        logits = self.compute_logits(hidden)  # (batch_size, num_rows, draft_vocab_size)
        scores, draft_ids = logits.log_softmax(-1, dtype=torch.float32).topk(min(width, logits.shape[-1]), dim=-1)
        # A broken head must not break the order of candidates: NaN counts as impossible.
        return scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf), self.draft.to_target_ids(draft_ids)


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`values[b, index[b, i]]` for `values` of shape `(batch_size, num, ...)` and `index` of shape `(batch_size, k)`."""
    if len(values) == 1:
        return values.index_select(1, index[0])
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest of each row, and where they stand; among equals the first come first, which `topk` leaves open."""
    values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index[:, :k]
