"""The target during one `generate` call: prefill, verification of trees, features, and what its cache keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..features import FeatureReader
from ..kv_cache import align_columns, keep_nodes
from ..tree import DraftTree
from .forward import cache_argument, forward_chain, forward_tree, takes_position_ids
from .masks import TreeMasks
from .recurrent import DeferredReplay, filled_length, has_recurrent_state
from .rotary_switch import RotarySwitch


@dataclass(frozen=True)
class PromptFeatures:
    """
    What the draft learns from the prompt.

    Args:
        features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * hidden_size)`):
            Features of the last `seq_len` prompt columns, those that the prefill computed and whose next token is
            known.
        positions (`torch.LongTensor` of shape `(batch_size, seq_len)`): Their positions.
        mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` at padding; `None` without any.
    """

    features: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None


class Target:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        model_kwargs (`dict`): As prepared by `generate`; holds the cache.
        reader ([`FeatureReader`]): Reads the features that the draft wants.
        is_tree (`bool`): Whether the target can verify trees; otherwise only chains, through its own causal mask.
    """  # noqa: D205

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        reader: FeatureReader,
        is_tree: bool,
    ):
        self.model = model
        self.generation_config = generation_config
        self.model_kwargs = model_kwargs
        self.reader = reader
        self.is_tree = is_tree
        self.cache: Cache = model_kwargs[cache_argument(model)]
        self.replay: DeferredReplay | None = None  # of targets with a recurrent state
        self.rotary_switch: RotarySwitch | None = None
        self._ids = torch.empty(0)  # (batch_size, length): the text, where a rotary switch lies ahead
        self._tree_tokens = torch.empty(0)
        self.num_forwards = 0
        self.lengths: list[int] = []  # committed columns of the cache, per row
        self._num_nodes = 0  # of a tree that is in the cache and waits for its accepted path
        self._states: list[torch.Tensor] = []  # hidden states that the draft reads
        self._recorded: list[tuple[Any, bool]] = []

    # ------------------------------------------------------------------ prompt

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        Run the prompt, as plain `generate` does.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, prompt_len)`): The prompt.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, vocab_size)`: Logits after the last prompt token.
        """
        kwargs = {**self.model_kwargs, "output_hidden_states": self.reader.output_hidden_states}
        with self.reader:
            outputs = self.model._prefill(input_ids, self.generation_config, kwargs)
        self.num_forwards += 1
        self._states = self.reader.states(outputs.hidden_states)
        # Phi-3 leaves the cache it was given empty, and makes one of its own, where a prompt is beyond its switch.
        self.cache = getattr(outputs, cache_argument(self.model), None) or self.cache
        past_len = filled_length(self.cache, self._states[0].shape[1])
        self.lengths = [past_len] * len(outputs.logits)
        mask = self.model_kwargs.get("attention_mask")
        self._prompt_mask = None if mask is None else mask[:, -past_len:].bool()
        positions = self.model_kwargs.get("position_ids")
        if not takes_position_ids(self.model):  # then the model counts columns, padding or not
            positions = torch.arange(past_len, device=outputs.logits.device)[None]
        elif positions is None:
            real = mask if mask is not None else torch.ones(1, past_len, dtype=torch.long, device=outputs.logits.device)
            positions = (real.cumsum(-1) - 1).clamp(min=0)
        self._prompt_positions = positions  # (batch_size or 1, len), or (3, batch_size, len) for multimodal rotary
        self._root_position = positions[..., -1:] + 1  # (..., batch_size or 1, 1)
        config, max_length = self.model.config.get_text_config(decoder=True), self.generation_config.max_length
        self.rotary_switch = RotarySwitch.on_the_way(config, past_len, max_length)
        self._ids = input_ids
        self._masks = TreeMasks(self.model.config.get_text_config(decoder=True), self.cache, self._prompt_mask)
        if has_recurrent_state(self.cache):
            pad_token = self.generation_config._pad_token_tensor
            self.replay = DeferredReplay(self.model, self.cache, pad_token=0 if pad_token is None else int(pad_token))
        else:
            self._record_past()
        return outputs.logits[:, -1:]

    def prompt_features(self, num_known_tokens: int) -> PromptFeatures:
        """
        Features of the prompt, as far as the prefill computed them and the token after each is known.

        Args:
            num_known_tokens (`int`): Prompt tokens whose ids are known; 0 where the prompt was given as embeddings.
        """
        features = self._features()
        seq_len = min(features.shape[1], max(num_known_tokens, 1))
        positions = self._text_positions(self._prompt_positions)[:, -seq_len:].expand(len(self.lengths), -1)
        mask = None if self._prompt_mask is None else self._prompt_mask[:, -seq_len:]
        return PromptFeatures(features[:, -seq_len:], positions, mask)

    # ------------------------------------------------------------------ steps

    def clamp_depth(self, depth: int) -> int:
        """
        No deeper than the target has positions: learned position embeddings end at `max_position_embeddings`. Beyond
        it, steps are plain ones.
        """
        if self.replay is not None:
            depth = self.replay.clamp_depth(depth)
        if self.rotary_switch is not None:
            depth = self.rotary_switch.clamp_depth(depth, *self._root_place())
        config = self.model.config.get_text_config(decoder=True)
        max_positions = getattr(config, "max_position_embeddings", None)
        return depth if not max_positions else min(depth, max(max_positions - 1 - max(self.lengths), 0))

    def verify(self, tree: DraftTree) -> torch.Tensor:
        """
        Run all nodes of the trees in one forward.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`: Logits after every node.
        """
        self._num_nodes, self._tree_tokens = tree.num_nodes, tree.tokens
        with self.reader:
            outputs = self._forward(tree, output_hidden_states=self.reader.output_hidden_states)
        self.num_forwards += 1
        self._states = [state[:, -tree.num_nodes :] for state in self.reader.states(outputs.hidden_states)]
        return outputs.logits[:, -tree.num_nodes :]

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        if self.rotary_switch is not None and self.rotary_switch.is_plain_step(*self._root_place()):
            return self._plain_step(tree.tokens, **kwargs)
        if self.is_tree:
            return forward_tree(self.model, tree, self._root_position, self.lengths, self.cache, self._masks, **kwargs)
        if self.replay is None:
            return self._forward_chain(tree, 0, **kwargs)
        with self.replay.as_single_steps():
            return self._forward_chain(self.replay.begin(tree), self.replay.num_pending, **kwargs)

    def _root_place(self) -> tuple[int, int]:
        """Column and largest position of the roots, for targets whose rows keep in step."""
        return max(self.lengths), int(self._root_position.max())

    @property
    def rows_may_run_ahead(self) -> bool:
        """Whether rows may have different lengths for a while; not where the longest decides the rotation of all."""
        return self.is_tree and self.rotary_switch is None

    def _plain_step(self, tokens: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """
        A step of plain `generate`, which lets the target prepare it. It may start a new cache (Phi-3 at its switch).

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
            past_key_values=self.cache,
            attention_mask=mask,
            position_ids=torch.cat([self._prompt_positions.expand(*new.shape[:-1], -1), new], dim=-1),
            use_cache=True,
        )
        outputs = self.model(**prepared, return_dict=True, **kwargs)
        if outputs.past_key_values is not self.cache:
            self.cache = self._masks.cache = outputs.past_key_values
            self._record_past()
        return outputs

    def _forward_chain(self, chain: DraftTree, num_pending: int, **kwargs: Any) -> CausalLMOutputWithPast:
        """Run a chain that begins with `num_pending` committed tokens."""
        mask = self._prompt_mask
        if mask is not None:
            new_len = self.lengths[0] - num_pending + chain.num_nodes - mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), new_len)], dim=1).long()
        return forward_chain(self.model, chain, self._root_position - num_pending, mask, self.cache, **kwargs)

    def catch_up(self) -> None:
        """Let a recurrent state that outlives this call read what it still lacks."""
        if self.replay is not None and self.replay.num_pending and self.outlives_generate:
            with self.replay.as_single_steps():
                self._forward_chain(self.replay.replay(), self.replay.num_pending)
            self.num_forwards += 1
            self.replay.caught_up()

    def keep(self, paths: Sequence[Sequence[int]]) -> torch.Tensor:
        """
        Keep the accepted paths of the last verification in the cache, and drop the other nodes.

        Args:
            paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of every row, the root first.

        Returns:
            `torch.Tensor` of shape `(batch_size, longest, num_features * hidden_size)`: Features of the accepted nodes;
            rows with shorter paths are filled with those of the root.
        """
        if self.rotary_switch is not None:
            tokens = [self._tree_tokens[row, path] for row, path in enumerate(paths)]
            self._ids = torch.cat([self._ids, torch.stack(tokens)], dim=1)
        self._keep(paths)
        longest = max(map(len, paths))
        device = self._root_position.device
        index = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)
        self._root_position = self._root_position + torch.tensor([[len(path)] for path in paths], device=device)
        return self._features(index)

    def _keep(self, paths: Sequence[Sequence[int]]) -> None:
        if self.is_tree:
            self.lengths = keep_nodes(self.cache, self.lengths, paths, self._num_nodes)
        else:  # a chain, all rows by the same number of nodes
            if self.replay is not None:
                self.replay.end(paths)
            else:
                self.cache.crop(len(paths[0]) - self._num_nodes)
            self.lengths = [length + len(paths[0]) for length in self.lengths]
        self._num_nodes = 0

    def _features(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """The captured hidden states, concatenated; only columns `index` of shape `(batch_size, k)` where given."""
        states = self._states
        if index is not None:
            rows = torch.arange(len(index), device=index.device)[:, None]
            states = [s.index_select(1, index[0]) if len(index) == 1 else s[rows, index] for s in states]
        return self.reader.concatenate(states)

    @staticmethod
    def _text_positions(positions: torch.Tensor) -> torch.Tensor:
        return positions if positions.dim() == 2 else positions[0]

    # ------------------------------------------------------------------ cache

    def _record_past(self) -> None:
        """
        Keep sliding layers from cutting their window before the accepted nodes are known. Only after the prefill: until
        then they would hold the whole prompt.
        """
        self._recorded += [(layer, layer.record_past) for layer in self.cache.layers if hasattr(layer, "record_past")]
        for layer, _ in self._recorded:
            layer.record_past = True

    @property
    def outlives_generate(self) -> bool:
        """Whether anybody sees the cache after this call."""
        return bool(self.generation_config.return_dict_in_generate or getattr(self.cache, "_is_user_defined", False))

    def release(self) -> None:
        """Hand the cache back as plain `generate` leaves it."""
        if self._num_nodes:  # an exception came between verification and acceptance
            self._keep([()] * len(self.lengths))
        if self.replay is not None:  # an exception may have come while tokens were read again
            self.replay.undo()
        if self.is_tree and self.lengths:
            align_columns(self.cache, self.lengths)
        for layer, recorded in self._recorded:
            layer.record_past = recorded
