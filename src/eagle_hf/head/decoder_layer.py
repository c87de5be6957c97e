"""One decoder layer of the head: attention of either kind, a gated MLP, and norms where its version has them."""

import torch
from torch import nn
from transformers import Cache
from transformers.activations import ACT2FN

from ..configuration_eagle import EagleConfig
from .attention import EagleAttention, Rotary
from .latent_attention import MultiHeadLatentAttention


class EagleMLP(nn.Module):
    """Gated MLP, as in Llama."""

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns hidden states of the shape of those it reads, `(..., hidden_size)`."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class EagleDecoderLayer(nn.Module):
    """
    One decoder layer of the head. In EAGLE-3 the first layer attends on `[embedding; hidden]`, and the embedding enters
    through attention only: the residual carries the hidden state.
    """

    def __init__(self, config: EagleConfig, layer_idx: int):
        super().__init__()
        self.reads_embeddings = config.eagle_version == 3 and layer_idx == 0
        self.norm_before_residual = config.norm_before_residual
        layers = config.sliding_window_layers
        self.has_window = config.sliding_window is not None and (layers is None or layer_idx in layers)

        def norm() -> nn.Module:
            return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        attention_class = EagleAttention if config.kv_lora_rank is None else MultiHeadLatentAttention
        self.self_attn = attention_class(config, layer_idx, config.hidden_size * (2 if self.reads_embeddings else 1))
        self.mlp = EagleMLP(config)
        self.input_layernorm = norm() if layer_idx > 0 or config.input_layernorm else nn.Identity()
        if self.reads_embeddings:
            self.hidden_norm = norm() if config.hidden_norm else nn.Identity()
        self.post_attention_layernorm = norm()

    def attention_inputs(
        self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns what attention reads, of shape `(batch_size, seq_len, input_size)`, and the residual it is added to.
        """
        if not self.reads_embeddings:
            return self.input_layernorm(hidden_states), hidden_states
        normed = self.hidden_norm(hidden_states)
        inputs = torch.cat([self.input_layernorm(inputs_embeds), normed], dim=-1)  # (batch_size, seq_len, 2 * hidden)
        return inputs, normed if self.norm_before_residual else hidden_states

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        rotary: Rotary,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """
        Returns the output of shape `(batch_size, seq_len, hidden_size)`; arguments as in [`EagleDraftModel.step`].
        """
        inputs, residual = self.attention_inputs(hidden_states, inputs_embeds)
        hidden_states = residual + self.self_attn(inputs, rotary, attention_mask, cache)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
