"""The target during one `generate` call: prefill, verification of trees, features, and what its cache keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import Cache, CompileConfig, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.keeping import (
    align_columns,
    capacity,
    hand_back_columns,
    keep_nodes,
    layers_with_keys,
    put_aside,
    set_filled,
    take_back,
)
from ..cache.lending import LentCache, settle
from ..fast.compiled_target import CompiledForward, compiled_call, plain_sizes
from ..tree import DraftTree
from ..versions import CACHE, cache_of
from .config import TargetConfig
from .direct_layers import direct_layers
from .features import FeatureReader
from .forward import cache_argument, forward_chain, forward_tree
from .inputs import StepInputs
from .layer_outputs import KeyLayout, LayerOutputs
from .masks import TreeMasks, window_of
from .recurrent import DeferredReplay, filled_length, has_recurrent_state
from .rotary_switch import RotarySwitch


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
    Reads features and lends its cache as long as it is entered as a context.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        model_kwargs (`dict`): As prepared by `generate`; holds the cache.
        reader ([`FeatureReader`]): Reads the features that the draft wants.
        is_tree (`bool`): Whether the target can verify trees; otherwise only chains, through its own causal mask.
        max_nodes (`int`): Nodes of the largest tree, the root included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        reader: FeatureReader,
        is_tree: bool,
        max_nodes: int,
    ):
        self.model = model
        self.generation_config = generation_config
        self.model_kwargs = model_kwargs
        self.reader = reader
        self.is_tree = is_tree
        self.cache: Cache = model_kwargs[cache_argument(model)]
        wanted = bool(generation_config.return_dict_in_generate)
        self._wants_hidden_states = wanted and bool(generation_config.output_hidden_states)
        self._wants_attentions = wanted and bool(generation_config.output_attentions)
        self.replay: DeferredReplay | None = None  # of targets with a recurrent state
        self.rotary_switch: RotarySwitch | None = None
        self._ids = torch.empty(0)  # (batch_size, length): the text, where a rotary switch lies ahead
        self._compiled = (
            compiled_call(model, model_kwargs, generation_config) if is_tree and not reader.has_hook else None
        )
        if self._compiled is None and (layers := direct_layers(model)):
            reader.read_layers(layers)
        self.is_on_cpu = model.device.type == "cpu"  # kept, as a model looks for it among its parameters
        self.max_nodes = max_nodes
        self.num_forwards = 0
        self.lengths: list[int] = []  # committed columns of the cache, per row
        self.num_prompt_columns = 0  # of the cache after the prefill
        self.prompt_outputs: LayerOutputs | None = None  # of the prefill, where they are wanted
        self._prompt_states: list[torch.Tensor] = []  # hidden states that the draft reads
        self._num_unkept = 0  # columns of the cache that an exception between `verify` and `keep` would leave behind
        self._lent: LentCache | None = None
        self._put_aside: list[tuple[torch.Tensor, torch.Tensor]] = []  # parts of the cache, and what belongs there

    def __enter__(self) -> "Target":
        self.reader.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader.__exit__()
        self._release()

    @property
    def has_fixed_shapes(self) -> bool:
        """
        Whether all trees are made equally large: where steps are compiled, every size would be a CUDA graph of its own.
        On a CPU one graph serves many sizes.
        """
        return self._compiled is not None and not self.is_on_cpu

    def compiling(self) -> tuple[CompileConfig | None, int | None]:
        """Returns how the target's steps are compiled, `None` if they are not, and the columns of its cache."""
        if self._compiled is None:
            return None, None
        return self.generation_config.compile_config or CompileConfig(), capacity(self.cache)

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
        if isinstance(self._compiled, CompiledForward):
            self._compiled.look_over()
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
        self._prompt_positions = positions  # (batch_size or 1, len), or (3, batch_size, len) for multimodal rotary
        self._root_position = positions[..., -1:] + 1  # (..., batch_size or 1, 1)
        config, max_length = self.model.config.get_text_config(decoder=True), self.generation_config.max_length
        self.rotary_switch = RotarySwitch.on_the_way(config, past_len, max_length)
        self._ids = input_ids
        self._masks = TreeMasks(config, self.cache, self._prompt_mask)
        self._max_positions = TargetConfig(self.model.config).num_positions
        self.prompt_outputs = self._layer_outputs(outputs, 0, self.lengths)
        if has_recurrent_state(self.cache):
            pad_token = self.generation_config._pad_token_tensor
            pad_token = 0 if pad_token is None else max(int(pad_token), 0)  # -1 stands for none
            self.replay = DeferredReplay(self.model, self.cache, pad_token)
        self._lent = LentCache(self.cache, self.generation_config.max_length, records_past=self.replay is None)
        return outputs.logits[:, -1:]

    def _in_last_chunk(self, num_read: int) -> int | None:
        """
        Returns the tokens of a prompt that the last forward of the prefill read; `None` where the cache does not count
        them.
        """
        chunk = self.generation_config.prefill_chunk_size or num_read
        return (num_read - 1) % chunk + 1 if num_read else None

    def _output_options(self) -> dict[str, Any]:
        options = {"output_hidden_states": self._wants_hidden_states or self.reader.output_hidden_states}
        return options | ({"output_attentions": True} if self._wants_attentions else {})

    def prompt_features(self, num_known_tokens: int) -> PromptFeatures:
        """
        Returns the features of the prompt, as far as the prefill computed them and the token after each is known.

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
        Returns a depth for which the target has positions: learned position embeddings end at
        `max_position_embeddings`. Beyond it, steps are plain ones.
        """
        if self.replay is not None:
            depth = self.replay.clamp_depth(depth)
        if self.rotary_switch is not None:
            depth = self.rotary_switch.clamp_depth(depth, *self._root_place())
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
        tree = self._fit(tree)
        self._make_way()
        run = tree
        if self._compiled is not None:
            room = cast(int, capacity(self.cache)) - max(self.lengths)
            run = tree.padded(min(self._num_rows(tree.num_nodes), room))
        num_rows = self._num_unkept = run.num_nodes
        outputs = self._forward(run, **self._output_options())
        self.num_forwards += 1
        # A forward may begin with tokens that are read again, whose outputs are no news.
        num_again = 0 if self.replay is None else self.replay.num_pending
        states = self.reader.states(outputs.hidden_states, num_again + num_rows)
        states = [state[:, -num_rows:] for state in states]
        logits = outputs.logits[:, -num_rows:][:, : tree.num_nodes]
        if self.has_fixed_shapes:  # CUDA graphs write the outputs of every replay to the same place
            states, logits = [state.clone() for state in states], logits.clone()
        return Verified(tree, logits, states, num_rows, self._layer_outputs(outputs, num_rows, self.lengths))

    def _fit(self, tree: DraftTree) -> DraftTree:
        """Returns as much of the tree as there is room for in a cache of fixed size."""
        columns = capacity(self.cache) if tree.num_nodes > 1 else None
        return tree if columns is None else tree.first(max(columns - max(self.lengths), 1))

    def _make_way(self) -> None:
        """
        Puts aside the last column of rows that fill a cache of fixed size, and so have ended: nodes of the others begin
        there.
        """
        columns = capacity(self.cache)
        if columns is None or max(self.lengths) < columns:
            return
        full = [row for row, length in enumerate(self.lengths) if length == columns]
        for row in full:
            self._put_aside += put_aside(self.cache, row, columns - 1)
            self.lengths[row] = columns - 1
        for layer in layers_with_keys(self.cache):
            set_filled(layer, columns - 1)

    def _num_rows(self, num_nodes: int) -> int:
        """
        Returns the rows that a compiled forward gets for so many nodes. On a CPU at least two: a single row would be a
        graph of its own, and a slower one (docs/performance.md).
        """
        if self.has_fixed_shapes:
            return self.max_nodes if num_nodes > 1 else 1
        return max(num_nodes, 2) if isinstance(self._compiled, CompiledForward) else num_nodes

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

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        if self.rotary_switch is not None and self.rotary_switch.is_plain_step(*self._root_place()):
            return self._plain_step(tree.tokens, **kwargs)
        kwargs["step_inputs"] = self._inputs
        if self.is_tree:
            call = self._compiled or self.model
            return forward_tree(
                self.model, tree, self._root_position, self.lengths, self.cache, self._masks, call=call, **kwargs
            )
        if self.replay is None:
            return self._forward_chain(tree, 0, **kwargs)
        with self.replay.as_single_steps():
            return self._forward_chain(self.replay.begin(tree), self.replay.num_pending, **kwargs)

    def _root_place(self) -> tuple[int, int]:
        """Returns the column and the largest position of the roots, for targets whose rows keep in step."""
        return max(self.lengths), int(self._root_position.max())

    @property
    def rows_may_run_ahead(self) -> bool:
        """Whether rows may have different lengths for a while; not where the longest decides the rotation of all."""
        return self.is_tree and self.rotary_switch is None

    def _plain_step(self, tokens: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """
        Returns a step of plain `generate`, which lets the target prepare it. It may start a new cache (Phi-3 at its
        switch).

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, 1)`): The newest tokens.
        """
        ids = torch.cat([self._ids, tokens], dim=1)
        mask, positions = self._prompt_mask, self._root_position
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), self.lengths[0] + 1 - mask.shape[1])], dim=1).long()
        num_new = self.lengths[0] + 1 - self._prompt_positions.shape[-1]
        new = positions - torch.arange(num_new - 1, -1, -1, device=positions.device)  # (..., batch_size or 1, num_new)
        prepared = self.model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=1,
            is_first_iteration=False,
            attention_mask=mask,
            position_ids=torch.cat([self._prompt_positions.expand(*new.shape[:-1], -1), new], dim=-1),
            use_cache=True,
            **{CACHE: self.cache},
        )
        prepared = self._inputs.for_nodes(1) | prepared
        outputs = self.model(**prepared, return_dict=True, **kwargs)
        if (new_cache := cache_of(outputs)) is not self.cache:
            if self._lent is not None:
                self._lent.give_back(is_seen=self.outlives_generate)
            self.cache = self._masks.cache = new_cache
            self._lent = LentCache(self.cache, self.generation_config.max_length)
        return outputs

    def _forward_chain(self, chain: DraftTree, num_pending: int, **kwargs: Any) -> CausalLMOutputWithPast:
        """Runs a chain that begins with `num_pending` committed tokens."""
        mask = self._prompt_mask
        if mask is not None:
            new_len = self.lengths[0] - num_pending + chain.num_nodes - mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), new_len)], dim=1).long()
        return forward_chain(self.model, chain, self._root_position - num_pending, mask, self.cache, **kwargs)

    def catch_up(self) -> bool:
        """Replays waiting tokens if the recurrent state outlives this call. Returns whether there were any."""
        lags_behind = self.replay is not None and self.replay.num_pending > 0 and self.outlives_generate
        if self.replay is not None and lags_behind:
            with self.replay.as_single_steps():
                self._forward_chain(self.replay.replay(), self.replay.num_pending, step_inputs=self._inputs)
            self.num_forwards += 1
            self.replay.caught_up()
        return lags_behind

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
        if self.rotary_switch is not None:
            tokens = [verified.tree.tokens[row, path] for row, path in enumerate(paths)]
            self._ids = torch.cat([self._ids, torch.stack(tokens)], dim=1)
        self._keep(paths, verified.num_rows)
        longest = max(map(len, paths))
        if verified.num_rows == longest == min(map(len, paths)) == 1:  # a plain step
            self._root_position = self._root_position + 1
            return self.reader.concatenate(verified.states)
        device = self._root_position.device
        index = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)
        self._root_position = self._root_position + torch.tensor([[len(path)] for path in paths], device=device)
        return self._features(verified.states, index)

    def _keep(self, paths: Sequence[Sequence[int]], num_nodes: int) -> None:
        settle(self.cache)
        if self.is_tree:
            self.lengths = keep_nodes(self.cache, self.lengths, paths, num_nodes)
        else:  # a chain, all rows by the same number of nodes
            if self.replay is not None:
                self.replay.end(paths)
            else:
                take_back(self.cache, num_nodes - len(paths[0]))
            self.lengths = [length + len(paths[0]) for length in self.lengths]
        self._num_unkept = 0

    def _features(self, states: Sequence[torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states at columns `index` of shape `(batch_size, k)`, concatenated."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        states = [s.to(index.device) for s in states]
        states = [s.index_select(1, index[0]) if len(index) == 1 else s[rows, index] for s in states]
        return self.reader.concatenate(states)

    def _layer_outputs(
        self, outputs: CausalLMOutputWithPast, num_nodes: int, lengths: Sequence[int]
    ) -> LayerOutputs | None:
        """
        Returns what `generate` returns of the layers, with the last `num_nodes` keys being those of a tree; or `None`.
        """
        if not (self._wants_hidden_states or self._wants_attentions):
            return None
        hidden_states = outputs.hidden_states if self._wants_hidden_states else None
        attentions = (getattr(outputs, "attentions", None) or ()) if self._wants_attentions else None
        slots = [0 if weights is None else weights.shape[-1] - num_nodes for weights in attentions or ()]
        layers, widths = self._masks.cache_layers(len(slots)), plain_sizes(self.cache)
        layouts = [
            KeyLayout(window_of(self.cache.layers[layer]), num_slots, widths[layer])
            for layer, num_slots in zip(layers, slots, strict=True)
        ]
        of_all = LayerOutputs(hidden_states, attentions, layouts, list(lengths))
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

    def _release(self) -> None:
        """Hands the cache back as plain `generate` leaves it."""
        if self._num_unkept:  # an exception came between verification and acceptance
            self._keep([()] * len(self.lengths), self._num_unkept)
        if self.replay is not None:  # an exception may have come while tokens were read again
            self.replay.undo()
        if self.is_tree and self.lengths:
            align_columns(self.cache, self.lengths)
        if self._put_aside and self.outlives_generate:
            for view, states in self._put_aside:
                view.copy_(states)
            for layer in layers_with_keys(self.cache):
                set_filled(layer, cast(int, capacity(self.cache)))
        if self.outlives_generate and capacity(self.cache) is not None:
            hand_back_columns(self.cache, plain_sizes(self.cache))
        if self._lent is not None:
            self._lent.give_back(is_seen=self.outlives_generate)
