"""Hidden states and attentions of every new token, in the form in which plain `generate` returns them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from ..target.layer_outputs import LayerOutputs, LayerTensors


class LayerRecords:
    """
    One forward covers a whole tree, plain `generate` one token at a time. This class cuts out of every verification
    what plain decoding would have computed for the accepted nodes. The entry of a node belongs to the token that the
    node emits; its attentions are cut to the keys of its own past:

    ```text
    keys of the forward     a b c | r0 n1 n2 n3        accepted: r0 n2
    attentions of r0        a b c   r0
    attentions of n2        a b c   r0    n2
    ```

    What the entries hold for rows that have finished is of no meaning, as in plain `generate`.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): Says what is wanted.
    """

    def __init__(self, generation_config: GenerationConfig):
        wanted = bool(generation_config.return_dict_in_generate)
        self.wants_hidden_states = wanted and bool(generation_config.output_hidden_states)
        self.wants_attentions = wanted and bool(generation_config.output_attentions)
        self._prompt: LayerOutputs | None = None
        self._batch_size, self._prompt_len = 0, 0
        # By column behind the prompt's entry, then by row.
        self._hidden_states: list[dict[int, LayerTensors]] = []
        self._attentions: list[dict[int, LayerTensors]] = []

    def add_prompt(self, outputs: LayerOutputs | None, prompt_len: int) -> None:
        """
        Records the prefill.

        Args:
            outputs ([`LayerOutputs`], *optional*): Its outputs; `None` where none are wanted.
            prompt_len (`int`): Columns that it left in the cache.
        """
        self._prompt, self._prompt_len = outputs, prompt_len

    def add(self, outputs: LayerOutputs | None, paths: Sequence[Sequence[int]]) -> None:
        """
        Records the accepted nodes of a verification.

        Args:
            outputs ([`LayerOutputs`], *optional*): Its outputs; `None` where none are wanted.
            paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of every row, the root first.
        """
        if outputs is None:
            return
        self._batch_size = len(paths)
        for row, path in enumerate(paths):
            for i, node in enumerate(path):
                column = outputs.lengths[row] + i - self._prompt_len
                if self.wants_hidden_states:
                    _column(self._hidden_states, column)[row] = tuple(
                        None if state is None else _node_state(state, row, node)
                        for state in outputs.hidden_states or ()
                    )
                if self.wants_attentions:
                    _column(self._attentions, column)[row] = tuple(
                        None
                        if weights is None
                        else _node_attention(
                            weights, row, node, layout.plain_keys(outputs.lengths, row, path[: i + 1]), layout.width
                        )
                        for weights, layout in zip(outputs.attentions or (), outputs.layouts, strict=True)
                    )

    @property
    def hidden_states(self) -> tuple[LayerTensors, ...] | None:
        """
        One entry per new token, each a tuple with the embedding and every layer: `(batch_size, prompt_len,
        hidden_size)` in the first entry, `(batch_size, 1, hidden_size)` in the others. `None` where not wanted.
        """
        if not self.wants_hidden_states:
            return None
        first = () if self._prompt is None else self._prompt.hidden_states or ()
        return (first, *(self._join(rows, dim=-3) for rows in self._hidden_states))

    @property
    def attentions(self) -> tuple[LayerTensors, ...] | None:
        """
        One entry per new token, each a tuple with every layer: `(batch_size, num_heads, prompt_len, kv_len)` in the
        first entry, `(batch_size, num_heads, 1, kv_len)` in the others. The entries are empty where the attention
        implementation returns none (sdpa, flash attention). `None` where not wanted.
        """
        if not self.wants_attentions:
            return None
        prompt = self._prompt
        first = tuple(
            None if weights is None else weights[..., : layout.width]
            for weights, layout in (() if prompt is None else zip(prompt.attentions or (), prompt.layouts, strict=True))
        )
        return (first, *(self._join(rows, dim=0) for rows in self._attentions))

    def _join(self, rows: dict[int, LayerTensors], dim: int) -> LayerTensors:
        """Joins the rows of a column; zeros for rows that have finished."""
        some = next(iter(rows.values()))
        nothing = tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in some)
        by_layer = zip(*(rows.get(row, nothing) for row in range(self._batch_size)), strict=True)
        return tuple(None if tensors[0] is None else torch.cat(tensors, dim=dim) for tensors in by_layer)


def _column(columns: list[dict[int, LayerTensors]], column: int) -> dict[int, LayerTensors]:
    while len(columns) <= column:
        columns.append({})
    return columns[column]


def _node_state(state: torch.Tensor, row: int, node: int) -> torch.Tensor:
    """Cuts the state of a node, `(..., 1, 1, hidden_size)`, out of `(..., batch_size, num_nodes, hidden_size)`."""
    return state[..., row : row + 1, node : node + 1, :].clone()  # not a view, which would keep the whole tree


def _node_attention(weights: torch.Tensor, row: int, node: int, keys: list[int], width: int | None) -> torch.Tensor:
    """Returns attentions of a node, `(1, num_heads, 1, width)`, of `(batch_size, num_heads, num_nodes, kv_len)`."""
    index = torch.tensor(keys, device=weights.device)
    cut = weights[row : row + 1, :, node : node + 1].index_select(-1, index)
    return cut if width is None else F.pad(cut, (0, width - len(keys)))
