"""Configuration of an EAGLE draft head."""

import copy
import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .hub_names import hub_id, is_hub_id
from .versions import CACHE


@strict
class EagleConfig(PreTrainedConfig):
    r"""
    Everything that distinguishes one EAGLE head from another. The weights alone never decide: a head is rebuilt from
    these fields, and weights that do not fit them are refused.

    The two families wire the same parts differently:

    ```text
    EAGLE-1, EAGLE-2                               EAGLE-3
    e = embedding of the next token                e = embedding of the next token
    f = last hidden state of the target            f = [low; middle; high] hidden states of the target
    x = fc([e; f])                                 x = fc(f)               (only for true target features)
    h = x + Attention(x)                           h = x + Attention([input_layernorm(e); hidden_norm(x)])
    y = h + MLP(post_attention_layernorm(h))       y = h + MLP(post_attention_layernorm(h))
    logits = target's lm_head(y)                   logits = lm_head(norm(y))
    ```

    In both, `y` is what the next draft step takes in place of a true feature.

    Args:
        eagle_version (`int`, *optional*, defaults to 3):
            1 for heads of EAGLE-1 and EAGLE-2 (same weights, they differ in the tree only), 3 for EAGLE-3.
        vocab_size (`int`, *optional*, defaults to 32000):
            Vocabulary size of the **target**.
        draft_vocab_size (`int`, *optional*):
            Rows of the head's own `lm_head`. Smaller than `vocab_size` where the head drafts from a reduced vocabulary.
            `None` means that the head has no `lm_head` and uses the target's.
        hidden_size (`int`, *optional*, defaults to 4096):
            Width of the head.
        target_hidden_size (`int`, *optional*):
            Width of the target's hidden states. Defaults to `hidden_size`. Where it differs, the head needs its own
            embedding.
        feature_layer_ids (`list[int]`, *optional*):
            Which hidden states of a target of `n` layers the head reads: 0 is the embedding, `i` the output of layer
            `i - 1`, so that `n` is the output of the last layer **before** the final norm, and -1 the last hidden state
            **after** it (what `hidden_states[n]` is in `transformers`). `None` means the choice of the authors,
            `[2, n // 2, n - 3]` (EAGLE-3). EAGLE-1 heads read `[-1]`.
        published_feature_layer_ids (`list[int]`, *optional*):
            What the repository of the head says, where it counts outputs of layers from 0 instead: one less than
            `feature_layer_ids`. Kept because such a list may turn out to be meant as it is once the target is known.
        own_embed_tokens (`bool`, *optional*, defaults to `False`):
            Whether the head carries its own token embedding. Otherwise it uses the target's.
        intermediate_size (`int`, *optional*, defaults to 14336): Width of the MLP.
        num_hidden_layers (`int`, *optional*, defaults to 1): Decoder layers of the head.
        num_attention_heads (`int`, *optional*, defaults to 32): Attention heads.
        num_key_value_heads (`int`, *optional*): Key/value heads. Defaults to `num_attention_heads`.
        head_dim (`int`, *optional*): Width of one attention head. Defaults to `hidden_size // num_attention_heads`.
        hidden_act (`str`, *optional*, defaults to `"silu"`): Activation of the MLP.
        rms_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every norm of the head.
        max_position_embeddings (`int`, *optional*, defaults to 2048):
            Positions the head was trained for. No hard limit: rotary embeddings are computed for any position.
        rope_parameters (`dict`, *optional*):
            Rotary embedding of the **head**, in the form of `transformers`. Defaults to theta 10000 whatever the target
            uses, as in the authors' code.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of newly initialised weights.
        use_fc (`bool`, *optional*, defaults to `True`):
            EAGLE-3: whether features go through `fc`. Without it, the head reads one hidden state as it is.
        fc_bias (`bool`, *optional*, defaults to `False`):
            Whether `fc` has a bias (EAGLE-1 heads for Llama-2 and Vicuna).
        qkv_bias (`bool`, *optional*, defaults to `False`):
            Whether the q, k and v projections have one (Qwen2 heads).
        o_bias (`bool`, *optional*, defaults to `False`): Whether the output projection of attention has one.
        mlp_bias (`bool`, *optional*, defaults to `False`): Whether the projections of the MLP have one.
        input_layernorm (`bool`, *optional*):
            Whether the first layer normalises what it reads: the token embedding in EAGLE-3 (default `True`), its
            input in EAGLE-1 (default `False`).
        hidden_norm (`bool`, *optional*, defaults to `True`):
            EAGLE-3: whether the first layer normalises the projected feature for attention.
        norm_before_residual (`bool`, *optional*, defaults to `False`):
            EAGLE-3: whether the first layer's residual is the normalised feature instead of the raw one.
        norm_before_fc (`bool`, *optional*, defaults to `False`):
            EAGLE-3: one RMSNorm over the concatenated features before `fc`.
        fc_norm (`bool`, *optional*, defaults to `False`):
            EAGLE-3: one RMSNorm per feature before the concatenation. Excludes `norm_before_fc`.
        norm_output (`bool`, *optional*, defaults to `False`):
            EAGLE-3: whether the next draft step takes `norm(y)` instead of `y`.
        qk_norm (`bool`, *optional*, defaults to `False`): RMSNorm on every query and key head.
        sliding_window (`int`, *optional*): How many rows a row of the head sees, itself included. All by default.
        sliding_window_layers (`list[int]`, *optional*): Layers that `sliding_window` is for. All by default.
        kv_lora_rank (`int`, *optional*):
            Width of the latent of keys and values. Set for heads with multi-head latent attention, as DeepSeek's; then
            `head_dim` is `qk_rope_head_dim`.
        q_lora_rank (`int`, *optional*): Latent attention: width of the latent of queries; `None` for none.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim (`int`, *optional*):
            Latent attention: widths of a head's query without position, query with position, and value.
        rope_interleave (`bool`, *optional*, defaults to `True`):
            Latent attention: whether the two numbers that are rotated together lie side by side.
        parallel_drafting (`bool`, *optional*, defaults to `False`):
            P-EAGLE: the head drafts a whole chain in one forward, in which later tokens have placeholders for
            their features.
        mask_token_id (`int`, *optional*): P-EAGLE: target token that stands for tokens that are not known yet.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`): As in `transformers`. Heads tie no weights.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*): Special tokens of the target.
        base_model_name_or_path (`str`, *optional*): The target this head was trained for, by its name on the Hub.

    Raises:
        `ValueError`: if the fields contradict each other. The message names both.

    Example:

    ```python
    >>> from eagle_hf import EagleConfig, EagleDraftModel

    >>> config = EagleConfig(
    ...     vocab_size=512, draft_vocab_size=128, hidden_size=64, intermediate_size=128, num_attention_heads=4
    ... )
    >>> draft = EagleDraftModel(config)
    >>> draft.config.num_features
    3
    ```
    """

    model_type = "eagle"
    keys_to_ignore_at_inference = [CACHE]

    eagle_version: int = 3
    vocab_size: int = 32000
    draft_vocab_size: int | None = None
    hidden_size: int = 4096
    target_hidden_size: int | None = None
    feature_layer_ids: list[int] | None = None
    published_feature_layer_ids: list[int] | None = None
    own_embed_tokens: bool = False
    intermediate_size: int = 14336
    num_hidden_layers: int = 1
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope_parameters: dict | None = None
    initializer_range: float = 0.02
    use_fc: bool = True
    fc_bias: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    input_layernorm: bool | None = None
    hidden_norm: bool = True
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_window_layers: list[int] | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    rope_interleave: bool = True
    parallel_drafting: bool = False
    mask_token_id: int | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    base_model_name_or_path: str | None = None

    def __post_init__(self, **kwargs):
        if self.target_hidden_size is None:
            self.target_hidden_size = self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.kv_lora_rank is not None:
            self.head_dim = self.qk_rope_head_dim  # what rotary embeddings are made for
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.input_layernorm is None:
            self.input_layernorm = self.eagle_version == 3
        if self.feature_layer_ids is None and (self.eagle_version == 1 or not self.use_fc):
            self.feature_layer_ids = [-1]
        super().__post_init__(**kwargs)
        self.validate_architecture()  # `@strict` does it as well, but wraps the `ValueError` in an error of its own

    @property
    def num_features(self) -> int:
        """How many hidden states of the target the head reads."""
        return 3 if self.feature_layer_ids is None else len(self.feature_layer_ids)

    def resolve_feature_layer_ids(self, num_target_layers: int) -> list[int]:
        """
        Returns the entries of the target's `hidden_states` that the head reads, as indices without sign. Whether the
        last entry is read before or after the final norm is what [`EagleConfig.feature_sources`] says.

        Args:
            num_target_layers (`int`): Decoder layers of the target.

        Raises:
            `ValueError`: if the target is too shallow for the authors' choice, or an index is out of range or repeated.
        """
        if self.feature_layer_ids is None:
            ids = sorted({2, num_target_layers // 2, num_target_layers - 3})
            if len(ids) < 3 or ids[0] < 0:
                raise ValueError(
                    f"The default feature layers [2, n // 2, n - 3] are {ids} for a target of {num_target_layers} "
                    "layers, which are not three different layers. Set `config.feature_layer_ids` of the draft"
                    " to the indices of the target's `hidden_states` that it was trained on."
                )
            return ids
        signed = self.feature_layer_ids
        if self.published_feature_layer_ids and max(self.published_feature_layer_ids) == num_target_layers:
            # No layer has this number when they are counted from 0: the list means entries of `hidden_states`.
            signed = self.published_feature_layer_ids
        ids = [i + num_target_layers + 1 if i < 0 else i for i in signed]
        if any(not 0 <= i <= num_target_layers for i in ids):
            raise ValueError(
                f"The draft reads `hidden_states` {self.feature_layer_ids}, but the target has {num_target_layers} "
                f"layers, so that valid indices are 0 to {num_target_layers} (or -1 for the last). This draft belongs "
                "to another target."
            )
        return ids

    def feature_sources(self, num_target_layers: int) -> list[int]:
        """
        Returns the states of the target that the head reads, the last layer counted twice: -1 is the last hidden state,
        after the target's final norm, and `num_target_layers` the output of the last layer before it. A configuration
        means the latter unless it says -1.

        Args:
            num_target_layers (`int`): Decoder layers of the target.

        Raises:
            `ValueError`: as [`EagleConfig.resolve_feature_layer_ids`].
        """
        ids, is_normed = self.resolve_feature_layer_ids(num_target_layers), -1 in (self.feature_layer_ids or [])
        return [-1 if i == num_target_layers and is_normed else i for i in ids]

    def validate_architecture(self):
        """Checks fields against each other, part of the `@strict` validation when a config is made, loaded or saved."""
        if self.eagle_version not in (1, 3):
            raise ValueError(
                f"`eagle_version` must be 1 (EAGLE-1 and EAGLE-2 heads) or 3 (EAGLE-3 heads), got {self.eagle_version}."
            )
        for name in (
            "vocab_size", "hidden_size", "target_hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < 2**31:
                raise ValueError(f"`{name}` must be a positive size, got {getattr(self, name)}.")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if (self.head_dim or 0) % 2:
            raise ValueError(f"`head_dim` must be even for rotary embeddings, got {self.head_dim}.")
        if self.draft_vocab_size is not None and not 0 < self.draft_vocab_size <= self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` ({self.draft_vocab_size}) must be between 1 and `vocab_size` ({self.vocab_size})."
            )
        if self.feature_layer_ids is not None and not self.feature_layer_ids:
            raise ValueError("`feature_layer_ids` is empty: a head needs at least one hidden state of the target.")
        if self.feature_layer_ids is not None and len(set(self.feature_layer_ids)) < len(self.feature_layer_ids):
            raise ValueError(f"`feature_layer_ids` {self.feature_layer_ids} names a hidden state twice.")
        if self.kv_lora_rank is not None:
            self._validate_latent_attention()
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"`mask_token_id` ({self.mask_token_id}) is not below `vocab_size` ({self.vocab_size}).")
        if not self.use_fc and (self.num_features != 1 or self.target_hidden_size != self.hidden_size):
            raise ValueError(
                f"A head without `fc` reads one hidden state as wide as itself ({self.hidden_size}), got "
                f"`feature_layer_ids` {self.feature_layer_ids} and `target_hidden_size` {self.target_hidden_size}."
            )
        if self.eagle_version == 1:
            self._validate_eagle1()
        elif self.draft_vocab_size is None and self.target_hidden_size != self.hidden_size:
            raise ValueError(
                f"A head without `lm_head` uses the target's, which reads {self.target_hidden_size} values, but the "
                f"head is {self.hidden_size} wide. Give it a `draft_vocab_size`."
            )
        if self.fc_norm and self.norm_before_fc:
            raise ValueError("`fc_norm` and `norm_before_fc` exclude each other: both normalise the input of `fc`.")
        if self.target_hidden_size != self.hidden_size and not self.own_embed_tokens:
            raise ValueError(
                f"`target_hidden_size` ({self.target_hidden_size}) differs from `hidden_size` ({self.hidden_size}), so "
                "that the target's embedding does not fit: the head needs `own_embed_tokens=True`."
            )

    def _validate_latent_attention(self):
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if not 0 < (getattr(self, name) or 0) < 2**31:
                raise ValueError(f"Latent attention needs a positive size `{name}`, got {getattr(self, name)}.")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ValueError(f"`q_lora_rank` must be a positive size or `None`, got {self.q_lora_rank}.")
        if self.qk_norm or self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                "Latent attention has neither `qk_norm` nor groups of heads, got "
                f"`qk_norm={self.qk_norm}`, {self.num_attention_heads} heads and {self.num_key_value_heads} for keys."
            )

    def _validate_eagle1(self):
        only_eagle3 = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "parallel_drafting")
        if used := [name for name in only_eagle3 if getattr(self, name)]:
            raise ValueError(f"`{'`, `'.join(used)}` exist in EAGLE-3 heads only, but `eagle_version` is 1.")
        if self.num_features != 1:
            raise ValueError(
                f"An EAGLE-1 head reads one hidden state, got `feature_layer_ids` {self.feature_layer_ids}."
            )
        if self.target_hidden_size != self.hidden_size:
            raise ValueError(
                f"An EAGLE-1 head is as wide as its target, got `hidden_size` {self.hidden_size} and "
                f"`target_hidden_size` {self.target_hidden_size}."
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """
        Saves the configuration as `transformers` does, but for `base_model_name_or_path`: the path of a target on this
        machine is not written, as it says nothing to others. Where it is a folder of the Hub's cache, its repository
        is.
        """
        name = self.base_model_name_or_path
        written = self
        if name is not None and not is_hub_id(name):
            written = copy.deepcopy(self)
            written.base_model_name_or_path = hub_id(name)
        super(EagleConfig, written).save_pretrained(save_directory, **kwargs)


__all__ = ["EagleConfig"]
