"""Hidden states and attentions of every new token, in the form in which plain `generate` returns them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.keeping import sliding_columns


LayerTensors = tuple[torch.Tensor | None, ...]  # one entry per layer


@dataclass(frozen=True)
class KeyLayout:
    """
    Which keys the attentions of a layer are about.

    Args:
        window (`int`, *optional*): Keys that a node sees at most in a layer with a window; `None` for full attention.
        num_slots (`int`): Keys in front of those of the tree; not used for full attention.
        width (`int`, *optional*):
            Keys that attentions of plain `generate` are about, where it has a static cache; `None` where they grow.
    """

    window: int | None
    num_slots: int
    width: int | None = None

    def plain_keys(self, lengths: Sequence[int], row: int, path: Sequence[int]) -> list[int]:
        """
        Where in the tree's forward the keys are that plain decoding has when it runs the last node of `path`, in order.

        Args:
            lengths (`Sequence[int]` of length `batch_size`): Committed columns of each row before the forward.
            row (`int`): The row.
            path (`Sequence[int]`): Nodes from the root to the node.
        """
        if self.window is None:  # left-aligned
            return [*range(lengths[row]), *(max(lengths) + node for node in path)]
        nodes = [self.num_slots + node for node in path]
        (columns,) = sliding_columns([lengths[row]], self.num_slots)
        filled = [slot for slot, column in enumerate(columns) if column >= 0]
        return [*filled, *nodes][-self.window :]


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
        self.is_wanted = self.wants_hidden_states or self.wants_attentions
        self._prompt: CausalLMOutputWithPast | None = None
        self._batch_size, self._prompt_len = 0, 0
        # By column behind the prompt's entry, then by row.
        self._hidden_states: list[dict[int, LayerTensors]] = []
        self._attentions: list[dict[int, LayerTensors]] = []

    def add_prompt(self, outputs: CausalLMOutputWithPast, prompt_len: int, layouts: Sequence[KeyLayout]) -> None:
        """
        Record the prefill.

        Args:
            outputs (`CausalLMOutputWithPast`): Its outputs.
            prompt_len (`int`): Columns that it left in the cache.
            layouts (`Sequence[KeyLayout]`): The keys of every entry of the attentions.
        """
        self._batch_size, self._prompt_len = len(outputs.logits), prompt_len
        attentions = None
        if self.wants_attentions:
            attentions = tuple(
                None if weights is None else weights[..., : layout.width]
                for weights, layout in zip(outputs.attentions or (), layouts, strict=True)
            )
        self._prompt = CausalLMOutputWithPast(
            hidden_states=outputs.hidden_states if self.wants_hidden_states else None, attentions=attentions
        )

    def add(
        self,
        outputs: CausalLMOutputWithPast,
        lengths: Sequence[int],
        paths: Sequence[Sequence[int]],
        layouts: Sequence[KeyLayout],
    ) -> None:
        """
        Record the accepted nodes of a verification.

        Args:
            outputs (`CausalLMOutputWithPast`): Its outputs.
            lengths (`Sequence[int]` of length `batch_size`): Committed columns of each row before it.
            paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of every row, the root first.
            layouts (`Sequence[KeyLayout]`): The keys of every entry of the attentions.
        """
        for row, path in enumerate(paths):
            for i, node in enumerate(path):
                column = lengths[row] + i - self._prompt_len
                if self.wants_hidden_states:
                    _column(self._hidden_states, column)[row] = tuple(
                        _node_state(state, row, node) for state in outputs.hidden_states
                    )
                if self.wants_attentions:
                    keys = [layout.plain_keys(lengths, row, path[: i + 1]) for layout in layouts]
                    _column(self._attentions, column)[row] = tuple(
                        None
                        if weights is None
                        else _node_attention(weights, row, node, keys[layer], layouts[layer].width)
                        for layer, weights in enumerate(outputs.attentions or ())
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
        first = () if self._prompt is None else self._prompt.attentions or ()
        return (first, *(self._join(rows, dim=0) for rows in self._attentions))

    def _join(self, rows: dict[int, LayerTensors], dim: int) -> LayerTensors:
        """Join the rows of a column; zeros for rows that have finished."""
        some = next(iter(rows.values()))
        nothing = tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in some)
        by_layer = zip(*(rows.get(row, nothing) for row in range(self._batch_size)), strict=True)
        return tuple(None if tensors[0] is None else torch.cat(tensors, dim=dim) for tensors in by_layer)


def _column(columns: list[dict[int, LayerTensors]], column: int) -> dict[int, LayerTensors]:
    while len(columns) <= column:
        columns.append({})
    return columns[column]


def _node_state(state: torch.Tensor, row: int, node: int) -> torch.Tensor:
    """Hidden state of a node, `(..., 1, 1, hidden_size)`, from `(..., batch_size, num_nodes, hidden_size)`."""
    return state[..., row : row + 1, node : node + 1, :].clone()  # not a view, which would keep the whole tree


def _node_attention(weights: torch.Tensor, row: int, node: int, keys: list[int], width: int | None) -> torch.Tensor:
    """Attentions of a node, `(1, num_heads, 1, width)`, from `(batch_size, num_heads, num_nodes, kv_len)`."""
    index = torch.tensor(keys, device=weights.device)
    cut = weights[row : row + 1, :, node : node + 1].index_select(-1, index)
    return cut if width is None else F.pad(cut, (0, width - len(keys)))


def newest_outputs(outputs: CausalLMOutputWithPast, num_nodes: int) -> CausalLMOutputWithPast:
    """Hidden states and attentions of the last `num_nodes` rows of a forward: what comes before is read again."""

    def newest(tensors: LayerTensors | None) -> LayerTensors | None:
        return None if tensors is None else tuple(None if x is None else x[..., -num_nodes:, :] for x in tensors)

    return CausalLMOutputWithPast(
        hidden_states=newest(outputs.hidden_states),
        attentions=newest(getattr(outputs, "attentions", None)),  # which Mamba's kind of outputs does not have
    )
