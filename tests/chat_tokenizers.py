"""Tiny tokenizers with the special tokens and, in our own words, the chat templates of real families."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)


ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "tests" / "fixtures" / "chat_templates"
MERGES = [("Ċ", "Ċ"), ("H", "i"), ("O", "k"), ("Ġ", "O"), ("Ġ", "Ok"), ("!", "Ċ")]  # Ċ is a line feed, Ġ a space


@dataclass(frozen=True)
class Family:
    """What makes a family: its control tokens, and which of them stop it."""

    control: list[str]
    eos: str
    bos: str | None = None
    stops: list[str] = field(default_factory=list)
    takes_blanks: bool = False  # control tokens swallow the blanks that follow


_CHATML = Family(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>"], "<|im_end|>")
FAMILIES = {
    "llama3_like": Family(
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"], "<|eot_id|>", "<|begin_of_text|>"
    ),
    "qwen_like": _CHATML,
    "qwen_like_with_generation_blocks": _CHATML,
    "mistral_like": Family(["[INST]", "[/INST]"], "</s>", "<s>"),
    "gemma_like": Family(["<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>"),
    "thinking_like": _CHATML,
    "opened_thinking_like": Family(["<|User|>", "<|Assistant|>", "<think>", "</think>"], "<|end|>", "<|begin|>"),
    "phi_like": Family(
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|endoftext|>", stops=["<|end|>"], takes_blanks=True
    ),
    "header_always": Family([], "</s>"),
}


def chat_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of a family; `demo` is that of the demo pair."""
    if name == "demo":
        return AutoTokenizer.from_pretrained(ROOT / "hub_cards" / "demo-llama-10m")
    family = FAMILIES[name]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [a + b for a, b in MERGES if a + b not in tokens]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token in dict.fromkeys([*family.control, family.eos, *([family.bos] if family.bos else [])]):
        tokenizer.add_special_tokens([AddedToken(token, rstrip=family.takes_blanks, normalized=False, special=True)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos, clean_up_tokenization_spaces=False
    )
    fast.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return fast


def stop_ids(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the generation configuration of such a target lists beside EOS."""
    stops = FAMILIES[name].stops if name in FAMILIES else []
    return [tokenizer.convert_tokens_to_ids(stop) for stop in stops]


def chatty_target(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A tiny random target that ends a turn now and then; the global generator is left as it was."""
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 2.5
    return model
