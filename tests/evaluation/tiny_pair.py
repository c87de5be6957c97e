"""A tiny pair that answers in letters, and results made up from times."""

import json
from pathlib import Path
from typing import Any

from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft


def tiny_pair() -> tuple[Any, Any, Any]:
    """Target, head and tokenizer."""
    target = tiny_target("llama")
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]  # letters only
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    return target, draft, letter_tokenizer()


def write_rows(path: Path, *rows: Any) -> Path:
    """A file of JSON lines; strings are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def made_up_record(
    number: int,
    plain: list[float],
    eagle: list[float],
    tokens: int = 100,
    lengths: list[int] | None = None,
    task: str = "qa",
    temperature: float = 0.0,
    **answer: Any,
) -> dict[str, Any]:
    """A record of a prompt of one turn, with these seconds."""
    lengths = lengths or [2, 3]
    return {
        "task": task,
        "digest": f"digest {number}",
        "place": f"file, line {number}",
        "temperature": temperature,
        "turns": [
            {
                "prompt_length": 5,
                "seed": number,
                "tokens": [7] * tokens,
                "methods": {
                    "plain": {"seconds": plain, "target_forwards": tokens, "num_tokens": tokens, "equal": True},
                    "eagle": {
                        "seconds": eagle, "target_forwards": tokens // 2, "draft_forwards": 9, "num_tokens": tokens,
                        "equal": True, "acceptance_lengths": lengths, **answer,
                    },
                },
            }
        ],
    }  # fmt: skip
