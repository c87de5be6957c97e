"""The draft head: features of the target and tokens in, next features and draft logits out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import ModelOutput
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..configuration_eagle import EagleConfig
from ..draft_options import DraftOptions
from ..versions import CACHE, cache_of
from .attention import Rotary
from .decoder_layer import EagleDecoderLayer
from .published_head import PublishedHead


@dataclass
class EagleDraftOutput(ModelOutput):
    """
    Output of [`EagleDraftModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, seq_len, hidden_size)`):
            What the next draft step takes as `hidden_states` in place of a true feature.
        logits (`torch.FloatTensor` of shape `(batch_size, seq_len, draft_vocab_size)`, *optional*):
            Scores of the draft vocabulary for the token after the paired one. `None` where the head has no `lm_head` of
            its own: then `draft.compute_logits(last_hidden_state, lm_head)` gives them, with the target's `lm_head`.
        cache ([`~transformers.Cache`], *optional*):
            Keys and values of all rows so far. `past_key_values` is the same; before transformers 5.24, where the word
            changed, it is also the name as a key.
    """

    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
        cache = property(cache_of)


class EagleDraftModel(PublishedHead):
    r"""
    An EAGLE draft head. It reads hidden states (features) of a target model, paired with the token that follows each of
    them, and predicts the token after that one.

    Row `j` of its input is (feature of position `j`, embedding of token `j + 1`) at rotary position `j`; its output
    scores token `j + 2`:

    ```text
    tokens     t0    t1    t2    t3
    features   f0    f1    f2
    row j      (f0,t1) (f1,t2) (f2,t3)     rotary positions 0 1 2
    predicts   t2      t3      t4
    ```

    Where no true feature is known yet (inside a draft tree) the head's own `last_hidden_state` takes its place.

    Args:
        config ([`EagleConfig`]): Configuration of the head.

    Example:

    ```python
    >>> import torch
    >>> from eagle_hf import EagleConfig, EagleDraftModel

    >>> config = EagleConfig(
    ...     vocab_size=512, draft_vocab_size=128, hidden_size=64, intermediate_size=128, num_attention_heads=4
    ... )
    >>> draft = EagleDraftModel(config).eval()
    >>> features, embeds = torch.randn(1, 5, 3 * 64), torch.randn(1, 5, 64)
    >>> output = draft(draft.project_features(features), embeds)
    >>> output.logits.shape
    torch.Size([1, 5, 128])
    ```
    """

    config_class = EagleConfig
    config: EagleConfig
    base_model_prefix = ""
    main_input_name = "hidden_states"
    _no_split_modules = ["EagleDecoderLayer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE]
    d2t: torch.Tensor

    def __init__(self, config: EagleConfig):
        super().__init__(config)

        def norm(size: int) -> nn.Module:
            return nn.RMSNorm(size, eps=config.rms_norm_eps)

        target_hidden_size = cast(int, config.target_hidden_size)
        feature_size = config.num_features * target_hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embed_tokens else None
        self.fc = None
        if config.eagle_version == 1:
            self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        else:
            if config.use_fc:
                self.fc = nn.Linear(feature_size, config.hidden_size, bias=config.fc_bias)
            self.norm = norm(config.hidden_size)
        if config.parallel_drafting:  # stands for the features of tokens that are drafted at once
            self.mask_hidden = nn.Parameter(torch.zeros(1, 1, feature_size))
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(norm(target_hidden_size) for _ in range(config.num_features))
        if config.norm_before_fc:
            self.input_norm = norm(feature_size)
        self.layers = nn.ModuleList(EagleDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = None
        if config.draft_vocab_size is not None:
            self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        if self.has_reduced_vocabulary:
            # Offsets, as every published head stores them: target id = draft id + d2t[draft id].
            self.register_buffer("d2t", torch.zeros(cast(int, config.draft_vocab_size), dtype=torch.long))
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False  # of the unrolls of training
        self.generation_config = DraftOptions.open_generation_config()
        if config.parallel_drafting:  # knows nothing of branches
            self.generation_config.draft_tree = "chain"
        self.post_init()

    @property
    def has_reduced_vocabulary(self) -> bool:
        """Whether the draft vocabulary is a proper subset of the target's."""
        return self.config.draft_vocab_size not in (None, self.config.vocab_size)

    @property
    def draft_to_target_ids(self) -> torch.Tensor:
        """Target id of every draft id, of shape `(draft_vocab_size,)` (`(vocab_size,)` where nothing is reduced)."""
        if self.has_reduced_vocabulary:
            return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
        return torch.arange(self.config.vocab_size, device=self.device)

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Returns the target ids of draft ids, of any shape."""
        return draft_ids + self.d2t[draft_ids] if self.has_reduced_vocabulary else draft_ids

    def set_draft_vocabulary(self, target_ids: torch.Tensor) -> None:
        """
        Chooses which target tokens the head can draft.

        Args:
            target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`): Different target ids, in ascending order.

        Raises:
            `ValueError`: if the number of ids is wrong, or they are out of range or not ascending.
        """
        if not self.has_reduced_vocabulary or target_ids.shape != self.d2t.shape:
            raise ValueError(
                f"Got {tuple(target_ids.shape)} target ids for a draft vocabulary of {self.config.draft_vocab_size} "
                f"out of {self.config.vocab_size} tokens."
            )
        if target_ids[0] < 0 or target_ids[-1] >= self.config.vocab_size or not (target_ids.diff() > 0).all():
            raise ValueError(f"Target ids must be ascending and within 0 to {self.config.vocab_size - 1}.")
        self.d2t.copy_(target_ids - torch.arange(len(target_ids), device=target_ids.device))

    def rotary(self, position_ids: torch.Tensor) -> Rotary:
        """Returns the rotary embedding of positions of shape `(batch_size, seq_len)`, as `step` takes it."""
        like = cast(EagleDecoderLayer, self.layers[0]).mlp.down_proj.weight  # only its device and dtype are read
        cos, sin = self.rotary_emb(like, position_ids)
        return cos[:, None], sin[:, None]

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        """
        Brings the target's features to what `forward` takes as `hidden_states`.

        Args:
            features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * target_hidden_size)`):
                Hidden states of the target, in the order of `config.feature_layer_ids`, concatenated.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`. For EAGLE-1 the features themselves: its `fc`
            reads feature and embedding together, in `forward`.
        """
        if self.config.eagle_version == 1:
            return features
        if self.config.fc_norm:
            parts = features.split(self.config.target_hidden_size, dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        elif self.config.norm_before_fc:
            features = self.input_norm(features)
        return features if self.fc is None else self.fc(features)

    def forward(
        self,
        hidden_states: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
    ) -> EagleDraftOutput:
        """
        Runs the head over rows of features and tokens.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`):
                Projected features, or `last_hidden_state` of an earlier draft step.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`):
                Embedding of the token that follows each feature.
            attention_mask (`torch.Tensor`, *optional*):
                Either of shape `(batch_size, past_len + seq_len)`, 1 for rows to be seen and 0 for padding, on top of
                causal attention; or of shape `(batch_size, 1, seq_len, past_len + seq_len)`, used as it is: boolean
                (`True` is seen) or added to the scores. Causal by default.
            position_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                Rotary positions. Default to those after the rows in the cache.
            cache ([`~transformers.Cache`], *optional*): Keys and values of earlier rows; grows by `seq_len`.
            use_cache (`bool`, *optional*): Whether to make a cache where none is given.
            past_key_values ([`~transformers.Cache`], *optional*): `cache` under its name before transformers 5.24.

        Returns:
            [`EagleDraftOutput`]

        Raises:
            `ValueError`: if features or embeddings are missing, or two caches are given.
        """
        if past_key_values is not None:
            if cache is not None:
                raise ValueError(
                    "Got both `cache` and `past_key_values`, which are two names of one argument. Pass one."
                )
            cache = past_key_values
        if hidden_states is None or inputs_embeds is None:
            raise ValueError("`hidden_states` and `inputs_embeds` are needed: a feature and the token that follows it.")
        if use_cache and cache is None:
            cache = DynamicCache()
        seq_len = hidden_states.shape[1]
        past_len = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past_len, past_len + seq_len, device=hidden_states.device)[None]
        rotary = self.rotary(position_ids)
        is_explicit = attention_mask is not None and attention_mask.dim() == 4
        if attention_mask is None and past_len > 0 and seq_len > 1:
            attention_mask = _causal_mask(seq_len, past_len, hidden_states.device)
        elif attention_mask is not None and attention_mask.dim() == 2:
            causal = _causal_mask(seq_len, past_len, hidden_states.device)
            itself = causal.triu(past_len)  # a padding row still sees itself, or its output would be NaN
            attention_mask = causal & attention_mask[:, None, None].bool() | itself

        sliding_mask = None
        window = self.config.sliding_window
        if window is not None and past_len + seq_len > window and not is_explicit:
            visible = (
                _causal_mask(seq_len, past_len, hidden_states.device) if attention_mask is None else attention_mask
            )
            sliding_mask = visible & torch.ones_like(visible[:1]).triu(past_len - window + 1)
        last_hidden_state = self.step(
            hidden_states, inputs_embeds, rotary, attention_mask, cache, sliding_mask=sliding_mask
        )
        return EagleDraftOutput(
            last_hidden_state=last_hidden_state,
            logits=None if self.lm_head is None else self.compute_logits(last_hidden_state),
            **{CACHE: cache},
        )

    def step(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        rotary: Rotary,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        sliding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Runs `forward` without its defaults and without logits, for the drafting loop.

        Args:
            hidden_states, inputs_embeds, cache: As in `forward`.
            rotary (pair of `torch.Tensor` of shape `(batch_size, 1, seq_len, head_dim)`):
                From the method `rotary`; `seq_len` may be 1 where all rows stand at the same position.
            attention_mask (`torch.BoolTensor` of shape `(batch_size, 1, seq_len, past_len + seq_len)`, *optional*):
                What each row sees. `None` is causal, and allowed for a single row or an empty cache only.
            sliding_mask (`torch.BoolTensor`, *optional*):
                What rows see in layers with a sliding window; the same as in others by default.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`: `last_hidden_state`.
        """
        if self.config.eagle_version == 1:
            hidden_states = cast(nn.Linear, self.fc)(torch.cat([inputs_embeds, hidden_states], dim=-1))
        for layer in self.layers:
            mask = attention_mask if sliding_mask is None or not layer.has_window else sliding_mask
            hidden_states = layer(hidden_states, inputs_embeds, rotary, mask, cache)
        return self.norm(hidden_states) if self.config.norm_output else hidden_states

    def compute_logits(
        self, last_hidden_state: torch.Tensor, lm_head: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """
        Scores the draft vocabulary.

        Args:
            last_hidden_state (`torch.Tensor` of shape `(..., hidden_size)`): Output of the head.
            lm_head (`Callable`, *optional*):
                The target's, which a head without one of its own uses. EAGLE-3 heads norm what it reads, unless
                `last_hidden_state` is normed already (`config.norm_output`); EAGLE-1 heads predict what it reads.

        Returns:
            `torch.Tensor` of shape `(..., draft_vocab_size)`, or `(..., vocab_size)` from the target's `lm_head`.

        Raises:
            `ValueError`: if the head has no `lm_head` of its own, and none is given.
        """
        if self.config.eagle_version == 3 and not self.config.norm_output:
            last_hidden_state = self.norm(last_hidden_state)
        if self.lm_head is None:
            if lm_head is None:
                raise ValueError(
                    "This head has no `lm_head` of its own, and none was given. Pass the target's: "
                    "`draft.compute_logits(last_hidden_state, target.get_output_embeddings())`."
                )
            return lm_head(last_hidden_state)
        return self.lm_head(last_hidden_state)


def _causal_mask(seq_len: int, past_len: int, device: torch.device) -> torch.Tensor:
    """
    Returns the boolean mask of shape `(1, 1, seq_len, past_len + seq_len)`; row `i` sees the past and rows up to
    itself.
    """
    return torch.ones(seq_len, past_len + seq_len, dtype=torch.bool, device=device).tril(past_len)[None, None]
