"""
Reads what a target's configuration says. `transformers` has no one name for most of it: positions are
`max_position_embeddings`, `n_positions`, `max_seq_len` or nothing at all, sizes differ between layers and then refuse
to be read as one, and layers are counted in two ways. All of the library reads a target's configuration here.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx", "model_max_length",
    "context_length", "seq_length", "max_sequence_length", "seq_len", "max_length_positions",
)  # fmt: skip
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_INTERMEDIATE_SIZE = (
    "intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size", "dense_intermediate_size", "d_ff",
)  # fmt: skip
_NO_ATTENTION_HEAD = 64  # width of a head where the target has none to go by


class TargetConfig:
    """
    Reads the configuration of a target's text decoder. Every field is read when it is asked for, and not before: what
    a target does not have, or has for every layer, is no error where nobody wants it.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Configuration of the target, of a multimodal one the whole.

    Example:

    ```python
    >>> from transformers import GPT2Config
    >>> from eagle_hf.target.config import TargetConfig

    >>> config = TargetConfig(GPT2Config(n_positions=512))
    >>> config.num_positions, config.norm_eps, config.num_layers
    (512, 1e-05, 12)

    ```
    """

    def __init__(self, config: PreTrainedConfig):
        self.whole = config
        self.text = config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int:
        """Tokens of the target; what its logits are for."""
        return self._needed("vocab_size")

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self._needed("hidden_size", "d_model", "n_embd")

    @property
    def num_layers(self) -> int:
        """
        Decoder layers: one less than the hidden states that are returned. Where a layer has several caches, there are
        more of these, and `num_hidden_layers` may be their number (LongCat-Flash).
        """
        counts = [count for name in ("num_hidden_layers", "num_layers") if (count := self._size(name)) is not None]
        return min(counts) if counts else self._needed("n_layer", "n_layers")

    @property
    def num_positions(self) -> int | None:
        """Positions that the target was made for; `None` if it does not say, as with biases by distance (ALiBi)."""
        return self._size(*_POSITIONS)

    @property
    def norm_eps(self) -> float:
        """Epsilon of the norms, 1e-5 if it has no name."""
        for name in _NORM_EPS:
            value = self._read(name)
            if isinstance(value, float) and value > 0:
                return value
        return 1e-5

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a layer with full attention. Of a target without attention, as many as are 64 wide."""
        return self._size("num_attention_heads", "n_head", "n_heads") or max(1, self.hidden_size // _NO_ATTENTION_HEAD)

    @property
    def num_key_value_heads(self) -> int:
        """Key heads of a layer with full attention."""
        heads = self.num_attention_heads
        key_heads = self._size("num_key_value_heads", "num_kv_heads") or heads
        return key_heads if heads % key_heads == 0 else heads

    @property
    def head_dim(self) -> int | None:
        """Width of a head of a layer with full attention; `None` where it is the hidden size by the number of heads."""
        return self._size("head_dim") if self._size("num_attention_heads", "n_head", "n_heads") else None

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP, four times the hidden size if it has no name."""
        return self._size(*_INTERMEDIATE_SIZE) or 4 * self.hidden_size

    @property
    def rope_parameters(self) -> dict[str, Any] | None:
        """Rotary embeddings of a layer with full attention; `None` for a target without them."""
        parameters = self._read("rope_parameters")
        if not isinstance(parameters, dict):
            return None
        by_kind = [value for value in parameters.values() if isinstance(value, dict)]
        return parameters.get("full_attention", by_kind[0]) if by_kind and "rope_type" not in parameters else parameters

    @property
    def special_token_ids(self) -> dict[str, Any]:
        """Ids of begin, end and padding, as an [`EagleConfig`] takes them; `None` where there is none (or -1)."""
        ids = {name: self._read(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {name: None if isinstance(value, int) and value < 0 else value for name, value in ids.items()}

    @property
    def borrows_keys(self) -> bool:
        """
        Whether some layers read the keys of earlier ones (Gemma 4, Gemma 3n). In a prompt they may run for its last
        token alone, as nobody needs the others, unless hidden states are asked for.
        """
        return any(str(mode).startswith("reuse") for mode in self._read("kv_sharing_modes") or ())

    @property
    def merges_streams(self) -> bool:
        """
        Whether layers pass several streams on, which come together behind the last one alone (Gemma 3n). Only what the
        decoder returns as its last hidden state, which the `lm_head` reads, is then one state per token.
        """
        return (self._read("altup_num_inputs") or 1) > 1

    @property
    def name_or_path(self) -> str | None:
        """Where the target was loaded from."""
        return self.text.name_or_path or self.whole.name_or_path or None

    @property
    def attention_implementation(self) -> str:
        """Such as `"sdpa"`."""
        return str(self.text._attn_implementation)

    def _needed(self, *names: str) -> int:
        if (value := self._size(*names)) is None:
            raise ValueError(
                f"The configuration of the target ({type(self.text).__name__}) has no `{names[0]}`, so that no head "
                "can be fitted to it. Drafts need a decoder that writes text."
            )
        return value

    def _size(self, *names: str) -> int | None:
        """Returns the first field that is a positive number; of a list by layers, that of one with full attention."""
        for name in names:
            value = self._read(name)
            if isinstance(value, Sequence) and not isinstance(value, str) and value:
                value = value[min(self._full_attention_layer, len(value) - 1)]
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def _read(self, name: str) -> Any:
        try:
            return getattr(self.text, name, None)
        except RuntimeError:  # `AmbiguousGlobalPerLayerAttributeError`: it differs between layers
            return getattr(self.text.per_layer_config[self._full_attention_layer], name, None)

    @property
    def _full_attention_layer(self) -> int:
        kinds = getattr(self.text, "layer_types", None) or []
        return next((i for i, kind in enumerate(kinds) if kind in ("full_attention", "attention")), 0)


def position_limit(model: PreTrainedModel) -> int | None:
    """
    Returns how many positions a text of the target can have at most, where it looks them up in a table, learned (GPT-2,
    OPT) or computed once (GPT-J): beyond its end there is no row. `None` where positions are computed as they are
    needed (rotary embeddings), or where there are none.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
    """
    num_positions = TargetConfig(model.config).num_positions
    if num_positions is None:
        return None
    decoder, limits = model.get_decoder(), []
    for name, module in (decoder if isinstance(decoder, nn.Module) else model).named_modules():
        is_table = isinstance(module, nn.Embedding) and re.search("pos|wpe", name)
        if is_table and num_positions <= module.num_embeddings <= num_positions + 2:
            offset = getattr(module, "offset", None)
            first = module.padding_idx + 1 if module.padding_idx is not None else 0  # of RoBERTa and its kin
            limits.append(module.num_embeddings - (first if offset is None else offset))
        for buffer_name, buffer in module.named_buffers(recurse=False):
            if re.search("pos", buffer_name) and buffer.dim() == 2 and len(buffer) == num_positions:
                limits.append(num_positions)
    return min(limits, default=None)
