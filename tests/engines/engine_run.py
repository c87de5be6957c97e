"""
Heads through every layout into vLLM, and its drafts beside ours. `main` writes benchmarks/results/engines.json, which
tests hold the documentation and the refusals of the exporters against.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engines.chains import LENGTH, compare, our_drafts
from engines.heads import HEADS, drawn_heads, random_head
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eagle_hf import EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint, modelopt, specforge, speculators


ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "engines.json"
TARGET = ROOT / "hub_cards" / "demo-llama-10m"
TRAINED = ROOT / "hub_cards" / "EAGLE3-demo-llama-10m"
READ_BY_VLLM = ("vllm", "sglang", "modelopt", "safeailab")
# Refused heads that are written for the experiment all the same, to see what an engine makes of them.
FORCED = {
    ("no hidden_norm", "modelopt"): modelopt,
    ("no input_layernorm", "modelopt"): modelopt,
    ("rope of a half of each head", "vllm"): speculators,
    ("fc_bias", "sglang"): specforge,
}
NUM_DRAWN, NUM_TOKENS, TRAINED_TOKENS = 16, 20, 192
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


def random_prompts() -> list[list[int]]:
    """Three prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [[1, *torch.randint(3, 8000, (length,), generator=generator).tolist()] for length in (12, 9, 15)]


def held_out_prompts() -> list[list[int]]:
    """The prompts that the trained pair is measured on, as its chat template writes them."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    lines = (ROOT / "benchmarks" / "held_out_prompts.jsonl").read_text().splitlines()
    found = []
    for line in lines:
        messages = [{"role": "user", "content": json.loads(line)["prompt"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


class _Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "does not name its target" not in record.getMessage():
            self.texts.append(record.getMessage())


def export(draft: EagleDraftModel, layout: str, folder: Path) -> dict[str, str]:
    """Export a head. Returns why it was refused, or what was warned of, if anything."""
    handler, logger = _Warnings(), logging.getLogger("eagle_hf.checkpoints")
    logger.addHandler(handler)
    try:
        export_checkpoint(draft, folder, layout, target=str(TARGET))
    except ValueError as error:
        return {"outcome": "refused", "reason": str(error)}
    finally:
        logger.removeHandler(handler)
    return {"warning": " ".join(handler.texts)} if handler.texts else {}


def says_so(row: dict[str, Any]) -> bool:
    """Whether an export for another engine's sake, which vLLM reads as well, warned of what vLLM does with it."""
    return row["layout"] == "safeailab" and "vLLM" in row.get("warning", "")


def _speculative_config(draft: EagleDraftModel) -> dict[str, Any]:
    method = {"method": "eagle" if draft.config.eagle_version == 1 else "eagle3"}
    return method | ({"parallel_drafting": True} if draft.config.parallel_drafting else {})


def measure(python: str, work: Path, only: str | None = None) -> dict[str, Any]:
    """
    Draft with every head here and in vLLM, and compare.

    Args:
        python (`str`): Interpreter of vLLM's environment.
        work (`pathlib.Path`): Folder for exported heads and drafts. Drafts of vLLM that are there already are used.
        only (`str`, *optional*): Part of the names of heads; all by default.

    Returns:
        `dict`: Versions, and one row per head and layout.
    """
    (work / "results").mkdir(parents=True, exist_ok=True)
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    rows, jobs, ours = [], [], {}
    heads = [
        (name, fields) for name, fields in (HEADS | drawn_heads(NUM_DRAWN)).items() if only is None or only in name
    ]
    for name, fields in heads:
        draft = random_head(fields)
        _add(rows, jobs, ours, work, name, fields, draft, target, random_prompts(), NUM_TOKENS, READ_BY_VLLM, 256)
    if only is None or only in "trained":
        draft = EagleDraftModel.from_pretrained(TRAINED, dtype=torch.float32)
        _add(
            rows, jobs, ours, work, "trained demo pair", {}, draft, target, held_out_prompts(), TRAINED_TOKENS,
            ("vllm",), 1024,
        )  # fmt: skip
    (work / "jobs.json").write_text(json.dumps({"target": str(TARGET), "jobs": jobs}))
    _run_vllm(python, work, jobs)
    versions = {name: version(name) for name in ("eagle_hf", "transformers", "torch")}
    for row in rows:
        if (number := row.pop("id", None)) is not None:
            found = _outcome(ours[row["head"]], json.loads((work / "results" / f"{number}.json").read_text()))
            versions |= {"vllm": found.pop("vllm", None) or versions.get("vllm")}
            row |= {"written_all_the_same": found} if "outcome" in row else found
    return {"versions": versions, "command": "make test-engines", "chain": LENGTH, "rows": rows}


def _add(
    rows: list, jobs: list, ours: dict, work: Path, name: str, fields: dict, draft: EagleDraftModel,
    target: PreTrainedModel, prompts: list, num_tokens: int, layouts: tuple[str, ...], length: int,
) -> None:  # fmt: skip
    for layout in layouts:
        row = {"head": name, "fields": fields, "layout": layout}
        folder = work / re.sub(r"\W+", "-", f"{name} {layout}")
        row |= export(draft, layout, folder)
        rows.append(row)
        if "outcome" in row:
            if (name, layout) not in FORCED:
                continue
            with patch.object(FORCED[name, layout], "refuse", lambda *arguments: None):
                export(draft, layout, folder)
        number = f"{folder.name}-{_digest(folder)}"  # so that what vLLM drafted is used for these very files only
        row["id"] = number
        jobs.append(
            {
                "id": number, "folder": str(folder), "speculative_config": _speculative_config(draft),
                "prompts": prompts, "num_tokens": num_tokens, "max_model_len": length,
            }
        )  # fmt: skip
        if name not in ours:
            ours[name] = our_drafts(target, draft, prompts, num_tokens)


def _digest(folder: Path) -> str:
    content = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    return hashlib.sha256(content).hexdigest()[:8]


def _run_vllm(python: str, work: Path, jobs: list[dict]) -> None:
    script, environment = Path(__file__).with_name("run_vllm.py"), os.environ | ENVIRONMENT
    environment.pop("PYTHONPATH", None)
    while any(not (work / "results" / f"{job['id']}.json").exists() for job in jobs):  # a head may end the process
        before = len(list((work / "results").iterdir()))
        with open(work / "vllm.log", "a") as log:
            subprocess.run([python, str(script), str(work)], env=environment, stdout=log, stderr=log, check=False)
        if len(list((work / "results").iterdir())) == before:
            raise RuntimeError(f"vLLM does not start: see {work / 'vllm.log'}.")


def _outcome(ours: list[dict], theirs: dict[str, Any]) -> dict[str, Any]:
    if "error" in theirs:
        # On a CPU, vLLM cannot keep the caches of latent attention and of the demo target's attention side by side.
        is_cpu = "No common block size" in theirs["error"]
        cause = re.search(r"Value error, (.*?)[.\n]", theirs.get("traceback", ""))  # pydantic's first line says nothing
        reason = cause[1] if cause and "validation error" in theirs["error"] else theirs["error"][:200]
        return {"outcome": "not run" if is_cpu else "does not load", "reason": reason, "vllm": theirs.get("vllm")}
    agreement = compare(ours, theirs["answers"])
    return {
        "outcome": "identical" if agreement.is_whole else "different",
        "texts": [agreement.texts, len(ours)],
        "chains": [agreement.identical, agreement.compared],
        "accepted": agreement.accepted,
        "vllm": theirs["vllm"],
    }


def main() -> None:
    """Measure everything, and write the results."""
    work = Path(os.environ.get("EAGLE_HF_ENGINE_WORK", ROOT / "runs" / "engines"))
    if not os.environ.get("EAGLE_HF_ENGINE_KEEP"):
        shutil.rmtree(work, ignore_errors=True)
    found = measure(os.environ["EAGLE_HF_VLLM_PYTHON"], work)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
