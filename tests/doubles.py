"""Test doubles: drafts that know the truth well enough for accepts, rejections and second branches all to occur."""

import random
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eagle_hf import DraftTree, EagleConfig, EagleDraftModel


def random_draft(target: PreTrainedModel, eagle_version: int = 3, **config) -> EagleDraftModel:
    """
    A head with random weights that fits the target, and that drafts a tree in every step (left open, it would soon
    draft nothing on a CPU); the global generator is left as it was.
    """
    text_config = target.config.get_text_config(decoder=True)
    settings = {
        "eagle_version": eagle_version,
        "vocab_size": text_config.vocab_size,
        "draft_vocab_size": text_config.vocab_size if eagle_version == 3 else None,
        "hidden_size": text_config.hidden_size,
        "intermediate_size": 2 * text_config.hidden_size,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "feature_layer_ids": [0, 1, 2] if eagle_version == 3 else [-1],
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draft = EagleDraftModel(EagleConfig(**(settings | config))).to(target.dtype).eval()
    if not draft.config.parallel_drafting:
        draft.generation_config.draft_tree = "dynamic"
    return draft


class ScriptedDrafter:
    """
    Takes the place of [`Drafter`]. It knows what plain `generate` produced, and grows random trees that contain the
    true continuation to a random depth, at a random place among its siblings; everything else in them is random.

    Args:
        truth (`list[list[int]]`): Per row the new tokens of plain `generate`.
        seed (`int`): Makes the trees; the global generator is never used.
        num_nodes, max_depth (`int`): Size of the trees.
        hit_rate (`float`): How likely the true token is among the children of a node on the true path.
        is_strict (`bool`): Whether being told other tokens than the truth is an error right away.
    """

    def __init__(
        self,
        truth: list[list[int]],
        seed: int,
        num_nodes: int = 9,
        max_depth: int = 4,
        hit_rate: float = 0.8,
        is_strict: bool = True,
    ):
        self.truth = truth
        self.is_strict = is_strict
        self.random = random.Random(seed)
        self.num_nodes, self.max_depth, self.hit_rate = num_nodes, max_depth, hit_rate
        self.emitted = [1] * len(truth)
        self.num_forwards = 0
        self.is_stopped = False

    def read_prompt(self, states: list[torch.Tensor], tokens: torch.Tensor, positions: torch.Tensor, mask) -> None:
        assert all(state.shape[:2] == tokens.shape for state in states)
        assert tokens.shape == positions.shape
        assert not self.is_strict or tokens[:, -1].tolist() == [row[0] for row in self.truth]

    defer_prompt = read_prompt

    def read_accepted(self, features: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> None:
        assert features.shape[:2] == tokens.shape
        for row, count in enumerate(counts):
            new = self.truth[row][self.emitted[row] : self.emitted[row] + count]
            told = tokens[row, : len(new)].tolist()
            assert not self.is_strict or told == new  # rows that have finished get padding beyond
            self.emitted[row] += count

    def grow(self, roots: torch.Tensor, max_depth: int, plan=None, noise_ahead=None) -> DraftTree:
        shape = self._shape(min(max_depth, self.max_depth))
        tokens = [self._tokens(row, int(root), shape) for row, root in enumerate(roots)]
        depths = [0]
        for parent in shape[1:]:
            depths.append(depths[parent] + 1)
        batch = len(roots)
        return DraftTree(
            tokens=torch.tensor(tokens),
            parents=torch.tensor([shape] * batch),
            depths=torch.tensor([depths] * batch),
            scores=torch.zeros(batch, len(shape)),
            max_depth=max(depths),
        )

    def _shape(self, max_depth: int) -> list[int]:
        parents, depths = [-1], [0]
        while len(parents) < self.num_nodes and max_depth > 0:
            parent = self.random.choice([node for node, depth in enumerate(depths) if depth < max_depth])
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return parents

    def _tokens(self, row: int, root: int, parents: list[int]) -> list[int]:
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        vocab = max(max(r) for r in self.truth) + 1
        tokens, on_path, position = [root] + [0] * (len(parents) - 1), 0, self.emitted[row]
        for node in range(1, len(parents)):
            tokens[node] = self.random.randrange(vocab)
        while on_path in children and position < len(self.truth[row]) and self.random.random() < self.hit_rate:
            on_path = self.random.choice(children[on_path])
            tokens[on_path] = self.truth[row][position]
            position += 1
        return tokens

    def stop(self) -> None:
        self.is_stopped = True


class ScriptedChainDrafter(ScriptedDrafter):
    """As [`ScriptedDrafter`], for targets that verify chains only."""

    def _shape(self, max_depth: int) -> list[int]:
        return [-1, *range(max_depth)]


def scripted(monkeypatch, make: Callable[[], ScriptedDrafter]) -> None:
    """Let the next calls of `generate` draft with what `make` returns."""
    monkeypatch.setattr("eagle_hf.generation.decoding.open_drafter", lambda *args: make())


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, byte-level."""
    vocabulary = {chr(97 + i): i + 3 for i in range(26)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", padding_side="left")


def inference_tensors(value: object, place: str = "") -> list[str]:
    """Where in a value tensors are that were made in inference mode: a module, a container, or what `vars` gives."""
    if isinstance(value, torch.Tensor):
        return [place] if value.is_inference() else []
    if isinstance(value, torch.nn.Module):
        entries = [
            (f"{place}.{name}.{key}", entry)
            for name, module in value.named_modules()
            for key, entry in vars(module).items()
            if key != "_modules"
        ]
    elif isinstance(value, dict):
        entries = [(f"{place}[{key!r}]", entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        entries = [(f"{place}[{i}]", entry) for i, entry in enumerate(value)]
    else:
        return []
    return [found for where, entry in entries for found in inference_tensors(entry, where)]
