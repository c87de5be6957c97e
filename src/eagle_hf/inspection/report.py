"""Inspecting a head: its facts, acceptance of the plausible readings, and a verdict."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_eagle import EagleConfig
from ..generation.converted_heads import align_draft
from ..generation.pairing import check_pair
from ..head.modeling_eagle import EagleDraftModel
from ..loading.targets import file_options, load_target, load_tokenizer
from ..target.config import TargetConfig
from .acceptance import Answer, accepted_counts, share_by_depth, write_answer
from .facts import HeadFacts, read_facts
from .prompts import PROMPTS, encode
from .readings import Reading


MAX_ROUNDS = 3  # a head may be wrong in two things at once; each round corrects one
BLOCK = 8  # positions
USELESS = 0.1  # share of first tokens that are right; heads that are read rightly have 0.5 to 0.9


@dataclass(frozen=True)
class Measured:
    """
    A reading and its acceptance.

    Args:
        reading ([`Reading`]): The reading.
        acceptance (`list[float]`): Share of chains whose first 1, 2, ... tokens are what the target writes.
        counts (`list[int]`): Right tokens of every chain.
    """

    reading: Reading
    acceptance: list[float]
    counts: list[int] = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean number of right tokens of a chain."""
        return sum(self.counts) / len(self.counts)

    def is_better_than(self, other: "Measured") -> bool:
        """Checks whether the difference is larger than chance explains: three standard errors."""
        difference = torch.tensor(self.counts).float() - torch.tensor(other.counts).float()
        # Chains of neighbouring positions share tokens: blocks of them are independent, more or less.
        means = [block.mean() for block in difference.split(BLOCK) if len(block) == BLOCK]
        if len(means) < 3:
            return False
        blocks = torch.stack(means)
        return float(blocks.mean()) > 3 * float(blocks.std()) / len(blocks) ** 0.5

    def __str__(self) -> str:
        return f"{self.reading.name}: {' '.join(f'{share:.2f}' for share in self.acceptance)} ({self.mean:.2f} tokens)"


@dataclass(frozen=True)
class HeadInspection:
    """
    Holds what [`inspect_head`] found. `str()` gives it as text.

    Args:
        repo (`str`): The head.
        facts ([`HeadFacts`]): What is known without its target.
        measured (`list[Measured]`): Every reading that was tried, the published one first. Empty without a target.
        best ([`Measured`], *optional*): The reading to use: the published one unless another is better beyond chance.
        config ([`EagleConfig`], *optional*): Configuration of the best reading.
        verdict (`str`): In plain words.
    """

    repo: str
    facts: HeadFacts
    measured: list[Measured] = field(default_factory=list)
    best: Measured | None = None
    config: EagleConfig | None = None
    verdict: str = "Nothing was measured: name the target to measure acceptance."

    @property
    def is_read_rightly(self) -> bool | None:
        """Whether the published reading is the best one and of use; `None` if nothing was measured."""
        if self.best is None:
            return None
        return self.best is self.measured[0] and self.best.acceptance[0] >= USELESS

    def load_best(self, **hub_kwargs: Any) -> EagleDraftModel:
        """
        Loads the head in its best reading, or as published where nothing was measured.

        Args:
            hub_kwargs: As in [`EagleDraftModel.from_pretrained`].
        """
        return EagleDraftModel.from_pretrained(self.repo, config=self.config, **hub_kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the counts, as plain values for JSON."""
        return {
            "repo": self.repo,
            "facts": asdict(self.facts),
            "measured": [
                {**asdict(m.reading), "acceptance": m.acceptance, "mean": m.mean, "chains": len(m.counts)}
                for m in self.measured
            ],
            "best": None if self.best is None else self.best.reading.name,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        facts = self.facts
        rows = {
            "weights": facts.source,
            "layout": facts.layout,
            "version": facts.version,
            "target named": facts.base_model or "none",
            "parameters": f"{facts.parameters / 1e6:.1f}M in {facts.dtype}, {facts.num_bytes / 1e6:.1f} MB",
            **{name: f"{value:,}" for name, value in facts.sizes.items()},
            **facts.decisions,
        }
        width = max(map(len, rows))
        lines = [self.repo, *(f"  {name:<{width}}  {value}" for name, value in rows.items())]
        if self.measured:
            chains = len(self.measured[0].counts)
            lines += ["", f"Share of {chains} greedy chains whose first 1, 2, ... tokens are the target's:"]
            lines += [f"  {'*' if m is self.best else ' '} {m}" for m in self.measured]
        return "\n".join([*lines, "", self.verdict])


def inspect_head(
    repo: str | os.PathLike,
    target: str | os.PathLike | PreTrainedModel | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[str | Sequence[int]] = PROMPTS,
    max_new_tokens: int = 96,
    depth: int = 5,
    dtype: str | torch.dtype = "auto",
    target_options: dict[str, Any] | None = None,
    **hub_kwargs: Any,
) -> HeadInspection:
    """
    Says what a head is and, given its target, whether it is read correctly: the target answers a few prompts greedily,
    and the head drafts chains along the answers in every plausible reading (numbering of feature layers, recurrence
    before or after the norm, residual, token pairs).

    Args:
        repo (`str` or `os.PathLike`): The head: repository id on the Hub, or a folder.
        target (`str`, `os.PathLike` or [`~transformers.PreTrainedModel`], *optional*):
            Its target. Without it, nothing is measured.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's; loaded along with the target where this is given by name.
        prompts (`Sequence`, *optional*): Texts, or lists of token ids. Eight short prompts by default.
        max_new_tokens (`int`, *optional*, defaults to 96): Length of the answers.
        depth (`int`, *optional*, defaults to 5): Length of the chains.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Of the target where it is loaded here.
        target_options (`dict`, *optional*): How else it is loaded: arguments of [`~eagle_hf.loading.load_target`].
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only` of the head.

    Returns:
        [`HeadInspection`]

    Raises:
        `OSError`, `ValueError`: as [`EagleDraftModel.from_pretrained`], and if the head does not fit the target or the
        answers are too short to measure anything.

    Example:

    ```python
    >>> import eagle_hf

    >>> print(eagle_hf.inspect_head("hub_cards/EAGLE3-demo-llama-10m", "hub_cards/demo-llama-10m"))  # doctest: +SKIP
    ```
    """
    draft, facts = read_facts(repo, **hub_kwargs)
    if target is None:
        return HeadInspection(str(repo), facts)
    if isinstance(target, PreTrainedModel):
        model = target
    else:
        options = dict(target_options or {})
        if torch.cuda.is_available():
            options.setdefault("device_map", "auto")
        model = load_target(target, **{"dtype": dtype} | options)
        tokenizer = tokenizer or load_tokenizer(target, **file_options(options))
    check_pair(model, draft)
    answers = [write_answer(model, encode(model, tokenizer, prompt), max_new_tokens) for prompt in prompts]

    def measure(reading: Reading) -> Measured:
        config = reading.config(draft.config)
        variant = EagleDraftModel.from_pretrained(repo, config=config, **hub_kwargs).eval()
        return _measure(model, align_draft(model, variant), answers, depth, reading)

    published = best = measure(Reading())
    measured = [published]
    num_layers = TargetConfig(model.config).num_layers
    for _ in range(MAX_ROUNDS):
        tried = [(m.reading.config(draft.config).to_dict(), m.reading.token_shift) for m in measured]
        others = [
            measure(reading)
            for reading in best.reading.alternatives(draft.config, num_layers)
            if (reading.config(draft.config).to_dict(), reading.token_shift) not in tried
        ]
        measured += others
        winner = max(others, key=lambda m: m.mean, default=best)
        if not winner.is_better_than(best):
            break
        best = winner
    config = best.reading.config(draft.config)
    return HeadInspection(str(repo), facts, measured, best, config, _verdict(str(repo), measured, best))


def _measure(
    target: PreTrainedModel, draft: EagleDraftModel, answers: Sequence[Answer], depth: int, reading: Reading
) -> Measured:
    counts = [
        count
        for answer in answers
        for count in accepted_counts(target, draft, answer, depth, reading.token_shift).tolist()
    ]
    if not counts:
        raise ValueError(
            f"The target's answers are shorter than a chain of {depth} tokens, so that nothing can be measured. Use "
            "other `prompts`, more `max_new_tokens` or less `depth`."
        )
    return Measured(reading, share_by_depth(counts, depth), counts)


def _verdict(repo: str, measured: list[Measured], best: Measured) -> str:
    published, *others = measured
    if best.acceptance[0] < USELESS:
        return (
            f"No reading works: at best {best.acceptance[0]:.0%} of first tokens are right ({best.reading.name}). The "
            "head belongs to another target (or another fine-tune or quantisation of it), or it is not trained."
        )
    if best is published:
        unclear = [m.reading.name for m in others if not published.is_better_than(m)]
        verdict = "The published reading is right: no other is better."
        if unclear:
            verdict += f" Not told apart from it by these prompts: {'; '.join(unclear)}."
        return verdict
    verdict = (
        f"Another reading is better: {best.reading.name}, with {best.mean:.2f} right tokens per chain instead of "
        f"{published.mean:.2f}."
    )
    if best.reading.token_shift:
        return (
            f"{verdict} The head was trained on other pairs of features and tokens than EAGLE heads are drafted with, "
            "which no option sets: it has to be trained again."
        )
    changes = ", ".join(f"{name}={value}" for name, value in best.reading.changes.items())
    return (
        f"{verdict} To load it so:\n    draft = EagleDraftModel.from_pretrained({repo!r}, {changes})\n"
        "`eagle-hf inspect ... --save FOLDER` keeps it."
    )
