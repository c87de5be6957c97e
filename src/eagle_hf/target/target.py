"""Prefill, verification of trees, features, and what the cache keeps: the target during one `generate` call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, CompileConfig, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.fixed import capacity
from ..cache.keeping import align_columns, keep_nodes
from ..cache.lending import LentCache
from ..tree import DraftTree
from .config import TargetConfig
from .features import FeatureReader
from .forward import cache_argument, forward_tree
from .inputs import StepInputs
from .layer_outputs import LayerOutputs
from .masks import TreeMasks
from .recurrent import filled_length


@dataclass(frozen=True)
class PromptFeatures:
    """
    Holds what the draft learns from the prompt.

    Args:
        states (`list[torch.Tensor]`, each of shape `(batch_size, seq_len, hidden_size)`):
            Hidden states that the draft reads, as the target returned them, without a copy: the last `seq_len` prompt
            columns, those that the prefill computed and whose next token is known.
        positions (`torch.LongTensor` of shape `(batch_size, seq_len)`): Their positions.
        mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` at padding; `None` without any.
        first_column (`int`): The cache's column that the first of them stands for.
    """

    states: list[torch.Tensor]
    positions: torch.Tensor
    mask: torch.Tensor | None
    first_column: int

    @property
    def seq_len(self) -> int:
        """Columns of the prompt whose features are known."""
        return self.positions.shape[1]


@dataclass(frozen=True)
class Verified:
    """
    Holds what one forward over draft trees has brought, between [`Target.verify`] and [`Target.keep`].

    Args:
        tree ([`DraftTree`]): The trees that were run: those proposed, as far as the cache had room for them.
        logits (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`): The target's logits after every node.
        states (`list[torch.Tensor]`, each of shape `(batch_size, num_rows, hidden_size)`):
            Hidden states of the nodes that the draft reads; rows behind the nodes are padding.
        num_rows (`int`): Columns that the cache has got for them.
        layer_outputs ([`LayerOutputs`], *optional*): What `generate` returns of the layers, where it was asked for.
    """

    tree: DraftTree
    logits: torch.Tensor
    states: list[torch.Tensor]
    num_rows: int
    layer_outputs: LayerOutputs | None = None


class Target:
    """
    A target that verifies trees. Reads features and borrows the cache as long as it is entered as a context.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        model_kwargs (`dict`): As prepared by `generate`; holds the cache.
        reader ([`FeatureReader`]): Reads the features that the draft wants.
        plain_sizes (`Sequence[int | None]`):
            Columns that each layer of plain `generate`'s cache would have; `None` for layers that grow.

    Subclasses run other nodes (`_forward`, `_padded`) or keep them in another way (`_kept`, `_undo`).
    """

    rows_may_run_ahead = True  # whether rows may have different lengths for a while
    _records_past = True  # whether the cache keeps what its windows would forget

    # From the prefill on.
    lengths: list[int]  # committed columns of the cache, per row
    num_prompt_columns: int  # of the cache after the prefill
    prompt_outputs: LayerOutputs | None  # of the prefill, where they are wanted
    _inputs: StepInputs
    _masks: TreeMasks
    _root_position: torch.Tensor  # (..., batch_size or 1, 1)
    _prompt_mask: torch.Tensor | None  # (batch_size, num_prompt_columns)
    _prompt_positions: torch.Tensor  # (batch_size or 1, len), or (3, batch_size, len) for multimodal rotary
    _prompt_states: list[torch.Tensor]  # hidden states that the draft reads

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        reader: FeatureReader,
        plain_sizes: Sequence[int | None],
    ):
        self.model = model
        self.generation_config = generation_config
        self.model_kwargs = model_kwargs
        self.reader = reader
        self.cache: Cache = model_kwargs[cache_argument(model)]
        self.num_forwards = 0
        self._plain_sizes = plain_sizes
        self._max_positions = TargetConfig(model.config).num_positions
        wanted = bool(generation_config.return_dict_in_generate)
        self._wants_hidden_states = wanted and bool(generation_config.output_hidden_states)
        self._wants_attentions = wanted and bool(generation_config.output_attentions)
        self._lent: LentCache | None = None
        self._num_unkept = 0  # columns of the cache that an exception between `verify` and `keep` would leave behind

    def __enter__(self) -> "Target":
        self.reader.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader.__exit__()
        if self._lent is None:
            return
        try:  # an exception may have come at any time
            if self._num_unkept:
                self._keep([()] * len(self.lengths), self._num_unkept)
            self._undo()
        finally:
            self._lent.give_back(is_seen=self.outlives_generate)

    def compiling(self) -> tuple[CompileConfig | None, int | None]:
        """Returns how steps are compiled, `None` if they are not, and the columns of the cache."""
        return None, None

    # ------------------------------------------------------------------ prompt

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        Runs the prompt, as plain `generate` does.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, prompt_len)`): The prompt.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, vocab_size)`: Logits after the last prompt token.
        """
        kwargs = {**self.model_kwargs, **self._output_options()}
        given, past_len = self.cache, filled_length(self.cache, 0)
        outputs = self.model._prefill(input_ids, self.generation_config, kwargs)
        self.num_forwards += 1
        # Phi-3 leaves the cache it was given empty, and makes one of its own, where a prompt is beyond its switch.
        self.cache = getattr(outputs, cache_argument(self.model), None) or self.cache
        num_read = filled_length(self.cache, 0) - (past_len if self.cache is given else 0)
        self._prompt_states = self.reader.states(outputs.hidden_states, self._in_last_chunk(num_read))
        self._inputs = StepInputs(self.model, input_ids, self.model_kwargs, outputs)
        past_len = filled_length(self.cache, self._prompt_states[0].shape[1])
        self.lengths = [past_len] * len(outputs.logits)
        self.num_prompt_columns = past_len
        mask = self.model_kwargs.get("attention_mask")
        self._prompt_mask = None if mask is None else mask[:, -past_len:].bool()
        positions = self.model_kwargs.get("position_ids")
        if positions is None:
            # `forward` does not name them: plain `generate` passes none, and the target counts columns.
            positions = torch.arange(past_len, device=outputs.logits.device)[None]
        self._prompt_positions = positions
        self._root_position = positions[..., -1:] + 1
        self._masks = TreeMasks(self.model.config.get_text_config(decoder=True), self.cache, self._prompt_mask)
        self._lent = self._borrow(self._plain_sizes)
        self.prompt_outputs = self._layer_outputs(outputs, 0)
        return outputs.logits[:, -1:]

    def _borrow(self, plain_sizes: Sequence[int | None]) -> LentCache:
        return LentCache(self.cache, self.generation_config.max_length, plain_sizes, self._records_past)

    def _in_last_chunk(self, num_read: int) -> int | None:
        """Returns how many tokens of a prompt the last forward of the prefill read; `None` if unknown."""
        chunk = self.generation_config.prefill_chunk_size or num_read
        return (num_read - 1) % chunk + 1 if num_read else None

    def _output_options(self) -> dict[str, Any]:
        options = {"output_hidden_states": self._wants_hidden_states or self.reader.output_hidden_states}
        return options | ({"output_attentions": True} if self._wants_attentions else {})

    def prompt_features(self, num_known_tokens: int) -> PromptFeatures:
        """
        Returns features of the prompt, as far as the prefill computed them and the token after each is known.

        Args:
            num_known_tokens (`int`): Prompt tokens whose ids are known; 0 where the prompt was given as embeddings.
        """
        states, self._prompt_states = self._prompt_states, []  # nothing but the draft needs them, and they are long
        seq_len, positions = min(states[0].shape[1], max(num_known_tokens, 1)), self._prompt_positions
        positions = (positions if positions.dim() == 2 else positions[0])[:, -seq_len:].expand(len(self.lengths), -1)
        mask = None if self._prompt_mask is None else self._prompt_mask[:, -seq_len:]
        first_column = self.num_prompt_columns - seq_len
        return PromptFeatures([state[:, -seq_len:] for state in states], positions, mask, first_column)

    # ------------------------------------------------------------------ steps

    def clamp_depth(self, depth: int) -> int:
        """
        Returns how deep a tree may be, at most `depth`: learned position embeddings end at `max_position_embeddings`.
        Beyond it, steps are plain ones.
        """
        if not self._max_positions:
            return depth
        return min(depth, max(self._max_positions - 1 - max(self.lengths), 0))

    def verify(self, tree: DraftTree) -> Verified:
        """
        Runs all nodes of the trees in one forward, as many as there is room for in a cache of fixed size.

        Args:
            tree ([`DraftTree`]): The proposed trees.

        Returns:
            [`Verified`]: for [`Target.keep`], once the accepted paths are known.
        """
        columns = capacity(self.cache) if tree.num_nodes > 1 else None
        if columns is not None:
            tree = tree.first(max(columns - max(self.lengths), 1))
        self._make_way()
        rows = self._padded(tree)
        num_rows = self._num_unkept = rows.num_nodes
        outputs = self._forward(rows, **self._output_options())
        self.num_forwards += 1
        # A forward may begin with tokens that are read again, whose outputs are no news.
        states = [state[:, -num_rows:] for state in self.reader.states(outputs.hidden_states, num_rows)]
        logits = outputs.logits[:, -num_rows:][:, : tree.num_nodes]
        return Verified(tree, logits, states, num_rows, self._layer_outputs(outputs, num_rows))

    def keep(self, verified: Verified, paths: Sequence[Sequence[int]]) -> torch.Tensor:
        """
        Keeps the accepted paths of a verification in the cache, and drops the other nodes.

        Args:
            verified ([`Verified`]): The last verification.
            paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of every row, the root first.

        Returns:
            `torch.Tensor` of shape `(batch_size, longest, num_features * hidden_size)`: Features of the accepted nodes;
            rows with shorter paths are filled with those of the root.
        """
        self._keep(paths, verified.num_rows)
        longest = max(map(len, paths))
        if verified.num_rows == longest == min(map(len, paths)) == 1:  # a plain step
            self._root_position = self._root_position + 1
            return self.reader.concatenate(verified.states)
        device = self._root_position.device
        index = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)
        self._root_position = self._root_position + torch.tensor([[len(path)] for path in paths], device=device)
        return self._features(verified.states, index)

    def idle(self, newest: torch.Tensor) -> None:
        """
        Runs a forward that changes nothing, for other ranks that wait for this one in theirs.

        Args:
            newest (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        """
        tree = DraftTree.root_only(newest)
        self._make_way()
        self._num_unkept = tree.num_nodes
        self._forward(tree)
        self._keep([()] * len(self.lengths), tree.num_nodes)

    @property
    def lags_behind(self) -> bool:
        """Whether the cache lacks accepted tokens that somebody will miss after this call; see [`Target.catch_up`]."""
        return False

    def catch_up(self) -> None:
        """Lets the cache read what it still lacks."""

    def _make_way(self) -> None:
        if self._lent is not None:
            self.lengths = self._lent.make_way(self.lengths)

    def _padded(self, tree: DraftTree) -> DraftTree:
        """Returns the nodes that a forward runs over."""
        return tree

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        """Runs all nodes behind the committed columns."""
        kwargs["step_inputs"] = self._inputs
        return forward_tree(self.model, tree, self._root_position, self.lengths, self.cache, self._masks, **kwargs)

    def _keep(self, paths: Sequence[Sequence[int]], num_nodes: int) -> None:
        if self._lent is not None:
            self._lent.settle()
        self.lengths = self._kept(paths, num_nodes)
        self._num_unkept = 0

    def _kept(self, paths: Sequence[Sequence[int]], num_nodes: int) -> list[int]:
        """Keeps the paths in the cache. Returns the columns that each row has committed now."""
        return keep_nodes(self.cache, self.lengths, paths, num_nodes)

    def _undo(self) -> None:
        """Brings the cache to the form of plain `generate`, between two steps or after an exception in one."""
        align_columns(self.cache, self.lengths)

    def _features(self, states: Sequence[torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        """Returns hidden states at columns `index` of shape `(batch_size, k)`, concatenated."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        states = [s.to(index.device) for s in states]
        states = [s.index_select(1, index[0]) if len(index) == 1 else s[rows, index] for s in states]
        return self.reader.concatenate(states)

    def _layer_outputs(self, outputs: CausalLMOutputWithPast, num_nodes: int) -> LayerOutputs | None:
        """Returns what `generate` returns of the layers; the last `num_nodes` keys are those of a tree."""
        if self._lent is None or not (self._wants_hidden_states or self._wants_attentions):
            return None
        hidden_states = outputs.hidden_states if self._wants_hidden_states else None
        attentions = (getattr(outputs, "attentions", None) or ()) if self._wants_attentions else None
        layouts = self._masks.key_layouts(attentions or (), num_nodes, self._lent.plain_sizes)
        of_all = LayerOutputs(hidden_states, attentions, layouts, self.lengths)
        return of_all.newest(num_nodes) if num_nodes else of_all

    # ------------------------------------------------------------------ cache

    @property
    def outlives_generate(self) -> bool:
        """Whether anybody sees the cache after this call."""
        return bool(self.generation_config.return_dict_in_generate or self.is_users_cache)

    @property
    def is_users_cache(self) -> bool:
        """Whether the cache was passed to this call."""
        return bool(getattr(self.cache, "_is_user_defined", False))
