"""Tiny heads in published layouts: samples written by the projects themselves, and others made here from code."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from eagle_hf import EagleDraftModel


SAMPLES = Path(__file__).parent / "fixtures" / "formats"
HIDDEN, VOCAB, DRAFT_VOCAB, HEADS, KV_HEADS, HEAD_DIM, MLP, TARGET_LAYERS = 64, 512, 128, 4, 2, 16, 96, 8

# What every flat configuration of a head says; layouts add the rest.
FLAT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCAB,
    "intermediate_size": MLP, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 256,
    "draft_vocab_size": DRAFT_VOCAB, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
}  # fmt: skip


def dense_head(num_layers: int = 1, num_features: int = 3, seed: int = 0, **extra: tuple[int, ...]) -> dict[str, Any]:
    """
    Random tensors of an EAGLE-3 head under the names that most engines share, norms away from 1. Shapes in `extra`
    (`__` for dots) add tensors.
    """
    shapes = {
        "fc.weight": (HIDDEN, num_features * HIDDEN),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
        "layers.0.hidden_norm.weight": (HIDDEN,),
    }
    for i in range(num_layers):
        layer, width = f"layers.{i}.", HIDDEN * (2 if i == 0 else 1)
        shapes |= {
            layer + "input_layernorm.weight": (HIDDEN,),
            layer + "post_attention_layernorm.weight": (HIDDEN,),
            layer + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, width),
            layer + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, width),
            layer + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, width),
            layer + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            layer + "mlp.gate_proj.weight": (MLP, HIDDEN),
            layer + "mlp.up_proj.weight": (MLP, HIDDEN),
            layer + "mlp.down_proj.weight": (HIDDEN, MLP),
        }
    shapes |= {name.replace("__", "."): shape for name, shape in extra.items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights = {name: tensor + 1 if "norm" in name else tensor for name, tensor in weights.items()}
    ids = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    weights["d2t"] = ids - torch.arange(DRAFT_VOCAB)
    weights["t2d"] = torch.zeros(VOCAB, dtype=torch.bool)
    weights["t2d"][ids] = True
    return weights


def rename(weights: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same tensors, `old` at the start of names replaced by `new`."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in weights.items()}


def write_head(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    """A repository with this configuration and these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def read_head(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and tensors of a folder as they are."""
    path = folder / "model.safetensors"
    weights = load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)
    return json.loads((folder / "config.json").read_text()), weights


def random_inputs(draft: EagleDraftModel, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and embeddings, of shapes `(1, length, num_features * target_hidden_size)` and `(1, length, hidden)`."""
    generator = torch.Generator().manual_seed(5)
    config = draft.config
    features = torch.randn(1, length, config.num_features * config.target_hidden_size, generator=generator)
    return features, torch.randn(1, length, config.hidden_size, generator=generator)


def reference(
    weights: dict[str, Any], features: torch.Tensor, embeds: torch.Tensor, norm_before_residual: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    An EAGLE-3 head written down plainly, from the tensors' presence alone, to compare with.

    Returns:
        Output of the last layer, of shape `(1, length, hidden)`, and logits of the draft vocabulary.
    """

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x if name not in weights else x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[name]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    length, num_features = features.shape[1], features.shape[-1] // HIDDEN
    parts = features.split(features.shape[-1] // num_features, dim=-1)
    hidden = torch.cat([norm(part, f"fc_norm.{i}.weight") for i, part in enumerate(parts)], dim=-1)
    hidden = norm(hidden, "input_norm.weight")
    hidden = linear(hidden, "fc") if "fc.weight" in weights else hidden
    angles = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turn = torch.polar(torch.ones_like(angles), angles)  # (length, head_dim / 2)

    def heads(x: torch.Tensor, name: str) -> torch.Tensor:
        x = norm(x.view(length, -1, HEAD_DIM).transpose(0, 1), name)
        if not name:
            return x
        turned = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    num_layers = sum(name.endswith("o_proj.weight") for name in weights)
    for i in range(num_layers):
        layer, residual = f"layers.{i}.", hidden
        inputs = norm(hidden, layer + "input_layernorm.weight")
        if i == 0:
            normed = norm(hidden, layer + "hidden_norm.weight")
            inputs = torch.cat([norm(embeds, layer + "input_layernorm.weight"), normed], dim=-1)
            residual = normed if norm_before_residual else hidden
        query = heads(linear(inputs, layer + "self_attn.q_proj"), layer + "self_attn.q_norm.weight")
        key = heads(linear(inputs, layer + "self_attn.k_proj"), layer + "self_attn.k_norm.weight")
        value = heads(linear(inputs, layer + "self_attn.v_proj"), "")
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (key, value))
        scores = (query @ key.transpose(1, 2)) * HEAD_DIM**-0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ value).transpose(0, 1).reshape(1, length, -1)
        hidden = residual + linear(attended, layer + "self_attn.o_proj")
        mlp_input = norm(hidden, layer + "post_attention_layernorm.weight")
        gate, up = linear(mlp_input, layer + "mlp.gate_proj"), linear(mlp_input, layer + "mlp.up_proj")
        hidden = hidden + linear(F.silu(gate) * up, layer + "mlp.down_proj")
    return hidden, linear(norm(hidden, "norm.weight"), "lm_head")


def check_reference(draft: EagleDraftModel, weights: dict[str, Any], norm_before_residual: bool = False) -> None:
    """Compare a loaded head with `reference` of the tensors it was made of."""
    features, embeds = random_inputs(draft)
    with torch.no_grad():
        hidden, logits = reference(weights, features, embeds, norm_before_residual)
        output = draft(draft.project_features(features), embeds)
        if draft.config.norm_output:
            hidden = draft.norm(hidden)
    torch.testing.assert_close(output.last_hidden_state, hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)


def golden_errors(name: str, bfloat16_embeds: bool = False, prefix: str = "", **options: Any) -> dict[str, float]:
    """
    Largest differences between a sample head and what the project's own class computed.

    Args:
        name (`str`): Folder of the sample.
        bfloat16_embeds (`bool`): Whether the project used the target's embedding in bfloat16.
        prefix (`str`): What the names of outputs start with.
        options: For `from_pretrained`.

    Returns:
        `dict[str, float]`: By output; `second_step` is the second unroll of training-time test.
    """
    golden, target = load_file(SAMPLES / name / "golden.safetensors"), load_file(SAMPLES / "target.safetensors")
    draft = EagleDraftModel.from_pretrained(SAMPLES / name, dtype=torch.float32, **options)
    inputs = ("aux_hidden_states", "hidden_in", "last_hidden_states")
    features = next(golden[key] for key in inputs if key in golden)
    table = draft.embed_tokens.weight if draft.embed_tokens is not None else target["embed_tokens.weight"]
    table = table.bfloat16().float() if bfloat16_embeds else table
    length = features.shape[1]
    errors = {}

    def compare(key: str, value: torch.Tensor) -> None:
        for candidate in (prefix + key, f"step0_{key}" if not prefix else ""):
            if candidate in golden:
                errors[key] = (golden[candidate] - value).abs().max().item()

    with torch.no_grad():
        projected = draft.project_features(features)
        first = draft(projected, table[golden["input_ids"]], use_cache=True)
        hidden = first.last_hidden_state
        compare("fc_out", projected)
        # The goldens hold what comes out of the last layer, which is not fed back where `norm_output` is set.
        compare("lm_head_in" if draft.config.norm_output else "layer_out", hidden)
        if first.logits is None:
            compare("logits_with_target_head", hidden @ target["lm_head.weight"].T)
        else:
            compare("logits", first.logits)
        if "step1_logits" in golden:
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            mask = torch.cat([causal, torch.eye(length, dtype=torch.bool)], dim=-1)[None, None]
            shifted = F.pad(golden["input_ids"][:, 1:], (0, 1))
            positions = torch.arange(1, length + 1)[None]
            second = draft(hidden, table[shifted], mask, positions, cache=first.cache)
            errors["second_step"] = (second.logits - golden["step1_logits"]).abs().max().item()
    return errors


def check_golden(name: str, **kwargs: Any) -> EagleDraftModel:
    """A sample head, its outputs compared with those of the project's own class."""
    errors = golden_errors(name, **kwargs)
    assert errors
    assert max(errors.values()) < 1e-4, errors
    return EagleDraftModel.from_pretrained(SAMPLES / name)


def tiny_llama(hidden_size: int = HIDDEN) -> PreTrainedModel:
    """A random target that sample heads and those made here fit, with opinions."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden_size, intermediate_size=96, num_hidden_layers=TARGET_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
