"""
Retrieval: text that repeats itself is drafted by looking it up.

Summaries quote, edited code is mostly the old code, and answers come back to what was said. Where the newest tokens
have occurred before, in the prompt or in the text so far, what followed them there is a good guess for what follows now
(prompt lookup; SAM decoding, https://huggingface.co/papers/2411.10666; suffix decoding,
https://huggingface.co/papers/2411.04975). It costs no forward of the head, and joins the head's tree as one more path:

```text
text       ... def area ( self ) : ... def area (           newest: "(", longest earlier match: "def area ("
head       ( ─┬─ x                                          retrieved: "self ) :"
              └─ self ─── ,
merged     ( ─┬─ x
              └─ self ─┬─ ,
                       └─ ) ─── :                           "self" is shared, "):" is new
```
"""

import math
from collections.abc import Sequence

import torch

from ..tree import DraftTree
from .policy import Plan


class SuffixAutomaton:
    """
    All substrings of a growing text, and where the longest suffix that is among the earlier ones occurred.

    One state stands for the substrings that end at the same places; every state knows the longest of them, one end, and
    a link to the state of the longest suffix that also ends elsewhere (Blumer et al., 1985). Appending a token takes
    constant time on average, whatever the length of the text.

    Example:

    ```python
    >>> text = SuffixAutomaton()
    >>> text.extend([1, 2, 3, 9, 1, 2])
    >>> text.match_length, text.continuation(3)  # 1 2 came before, and 3 9 1 followed it
    (2, [3, 9, 1])
    ```

    Attributes:
        tokens (`list[int]`): The text.
        match_length (`int`): Tokens of the longest suffix that also ends earlier in the text; 0 if there is none.
        match_end (`int`): Index behind an earlier occurrence of it.
    """

    def __init__(self):
        self.tokens: list[int] = []
        self.match_length, self.match_end = 0, 0
        self._next: list[dict[int, int]] = [{}]  # per state: token to state
        self._link = [-1]
        self._length = [0]  # of the longest substring of each state
        self._end = [0]  # index behind an occurrence of each state's substrings
        self._last = 0  # the state of the whole text

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        following, link, length, end = self._next, self._link, self._length, self._end
        self.tokens.append(token)
        new = len(following)
        following.append({})
        length.append(len(self.tokens))
        end.append(len(self.tokens))
        link.append(0)
        state = self._last
        while state != -1 and token not in following[state]:
            following[state][token] = new
            state = link[state]
        if state != -1:
            found = following[state][token]
            if length[found] > length[state] + 1:  # only its shorter substrings are suffixes of the text: split it
                found = self._split(found, state, token)
            link[new] = found
        self._last = new
        match = link[new]
        self.match_length, self.match_end = length[match], end[match]
        end[match] = len(self.tokens)  # the newest occurrence is the likeliest to go on in the same way

    def _split(self, found: int, state: int, token: int) -> int:
        """Returns a new state for those substrings of `found` that are `token` behind a substring of `state`."""
        following, link = self._next, self._link
        copy = len(following)
        following.append(following[found].copy())
        self._length.append(self._length[state] + 1)
        self._end.append(self._end[found])
        link.append(link[found])
        link[found] = copy
        while state != -1 and following[state].get(token) == found:
            following[state][token] = copy
            state = link[state]
        return copy

    def continuation(self, count: int) -> list[int]:
        """
        Returns the `count` tokens that followed the earlier occurrence of the longest match. Where it is so near the
        end that fewer did, the text is taken to go on repeating itself.
        """
        period = len(self.tokens) - self.match_end
        if period == 0:  # nothing was ever repeated
            return self.tokens[-1:] * count
        following = self.tokens[self.match_end : self.match_end + count]
        return [following[i % period] for i in range(count)]


class Retrieval:
    """
    Looks up how every row of a batch may go on, and adds that to its draft tree.

    Args:
        num_tokens (`int`): Most tokens to add to a tree.
        prompts (`Sequence[Sequence[int]]` of length `batch_size`):
            Prompts. Padding may stay: it repeats itself, but no text repeats it.
        replaces_tree (`bool`):
            Whether the path takes the place of the tree, for targets that verify chains only.
    """

    MIN_MATCH = 3  # tokens that have to repeat before anything is retrieved: shorter matches are chance
    TOKENS_PER_MATCH = 2  # how far to trust a match: this many tokens for each of its own

    def __init__(self, num_tokens: int, prompts: Sequence[Sequence[int]], replaces_tree: bool = False):
        self.num_tokens, self.replaces_tree = num_tokens, replaces_tree
        self.rows = [SuffixAutomaton() for _ in prompts]
        self._num_read = [0] * len(prompts)  # new tokens that a row's automaton has
        for row, prompt in zip(self.rows, prompts, strict=True):
            row.extend(prompt)

    def extend(
        self,
        tree: DraftTree,
        new_tokens: Sequence[Sequence[int]],
        open_rows: Sequence[int],
        max_depth: int,
        plan: Plan,
    ) -> DraftTree:
        """
        Adds a path to every tree.

        Args:
            tree ([`DraftTree`]): The trees that the head has grown.
            new_tokens (`Sequence[Sequence[int]]` of length `batch_size`): New tokens so far, the roots last.
            open_rows (`Sequence[int]`): Rows that have not finished.
            max_depth (`int`): Deepest level that can still be used.
            plan ([`Plan`]): Says whether to look up, and how many tokens are worth verifying.

        Returns:
            [`DraftTree`]: With one more path, equally many new nodes in every row: rows with shorter matches are
            padded with arbitrary tokens. The trees as they were where too little repeats itself.
        """
        if not plan.looks_up:
            return tree
        for index, tokens in enumerate(new_tokens):
            self.rows[index].extend(tokens[self._num_read[index] :])
            self._num_read[index] = len(tokens)
        matches = [self.rows[index].match_length for index in open_rows]
        match = min(matches) if self.replaces_tree else max(matches)
        if match < self.MIN_MATCH:
            return tree
        if self.replaces_tree:
            tree = DraftTree.root_only(tree.tokens[:, 0])
        count = min(self.TOKENS_PER_MATCH * match, self.num_tokens, max_depth - tree.max_depth)
        rates = [math.exp(_log_prob(match)) if match >= self.MIN_MATCH else 0.0 for match in matches]
        count = plan.num_worth_looking_up(rates, count)
        if count < 1:
            return tree
        path = [row.continuation(tree.max_depth + count) for row in self.rows]
        log_probs = [_log_prob(row.match_length) for row in self.rows]
        device = tree.tokens.device
        scores = torch.tensor(log_probs, dtype=torch.float32, device=device)
        return add_path(tree, torch.tensor(path, device=device), count, scores)


def _log_prob(match_length: int) -> float:
    """
    Returns how likely a match goes on as it did before, by the rule of succession: it has done so `match_length` times.
    """
    return math.log((match_length + 1) / (match_length + 2))


def add_path(tree: DraftTree, path: torch.Tensor, count: int, log_probs: torch.Tensor) -> DraftTree:
    """
    Adds a path to every tree. What the tree has of it already is shared, so that no node is there twice; the `count`
    tokens that follow become new nodes, in every row as many. Nothing is read back from the device.

    Args:
        tree ([`DraftTree`]): The trees.
        path (`torch.LongTensor` of shape `(batch_size, tree.max_depth + count)`): Tokens below the roots.
        count (`int`): Nodes to add.
        log_probs (`torch.FloatTensor` of shape `(batch_size,)`): Log-probability of each new token after its parent.

    Returns:
        [`DraftTree`]: The nodes of `tree` as they were, and `count` more behind them.
    """
    depths = tree.depths
    agrees = tree.tokens == path.gather(1, (depths - 1).clamp(min=0))  # (batch_size, num_nodes)
    agrees[:, 0] = True  # the root
    is_shared = ~(tree.ancestor_mask() & ~agrees[:, None]).any(dim=-1)
    last_shared = torch.where(is_shared, depths, -1).argmax(dim=1, keepdim=True)  # (batch_size, 1): the deepest one
    shared_depth = depths.gather(1, last_shared)
    steps = torch.arange(count, device=depths.device)
    parents = (tree.num_nodes - 1 + steps).repeat(len(depths), 1)  # (batch_size, count)
    parents[:, :1] = last_shared
    return DraftTree(
        tokens=torch.cat([tree.tokens, path.gather(1, shared_depth + steps)], dim=1),
        parents=torch.cat([tree.parents, parents], dim=1),
        depths=torch.cat([depths, shared_depth + 1 + steps], dim=1),
        scores=torch.cat([tree.scores, tree.scores.gather(1, last_shared) + log_probs[:, None] * (1 + steps)], dim=1),
        max_depth=tree.max_depth + count,
    )
