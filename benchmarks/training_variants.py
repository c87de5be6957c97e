"""
What the choices in training a head are worth: heads trained on the demo target with equal data and steps, and what
`generate` accepts of their drafts on the six task sets of the EAGLE papers.

    python benchmarks/training_variants.py --answers ANSWERS --conversations CONVERSATIONS --tasks TASKS \
        --output runs/variants

`ANSWERS` are answers of the target itself (`eagle-hf prepare`), `CONVERSATIONS` the rows they were made from, with
answers by others, and `TASKS` a folder with `<task>/question.jsonl`, as in the authors' repository. Every variant is
trained from scratch with one seed; one that was measured before is not measured again.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from speed import acceptance, encode
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging

from eagle_hf import DraftOptions, EagleDraftModel
from eagle_hf.training import (
    EagleTrainer,
    EagleTrainingArguments,
    PaddingCollator,
    SampleDataset,
    coverage,
    make_samples,
    most_frequent_tokens,
    new_head,
)


ROOT = Path(__file__).parents[1]
TREE = DraftOptions(num_assistant_tokens=15, draft_depth=6, draft_width=4)
TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "sum", "qa")

# Name: (fields of the head, training arguments, draft vocabulary, whether on the target's own answers).
EAGLE3_1 = {"fc_norm": True, "norm_output": True}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], int | None, bool]] = {
    "EAGLE-1": ({"eagle_version": 1}, {}, None, True),
    "EAGLE-1, 3 harmonised steps": ({"eagle_version": 1}, {"num_unrolls": 3}, None, True),
    "EAGLE-1, 4096 tokens (FR-Spec)": ({"eagle_version": 1}, {}, 4096, True),
    "EAGLE-3 without training-time test": ({}, {"num_unrolls": 1}, 4096, True),
    "EAGLE-3": ({}, {}, 4096, True),
    "EAGLE-3, LK loss (lambda)": ({}, {"loss": "lk_lambda"}, 4096, True),
    "EAGLE-3, LK loss (alpha)": ({}, {"loss": "lk_alpha"}, 4096, True),
    "EAGLE-3 with norms of 3.1": (EAGLE3_1, {}, 4096, True),
    "EAGLE-3, 1024 tokens": ({}, {}, 1024, True),
    "EAGLE-3, all 8192 tokens": ({}, {}, 8192, True),
    "EAGLE-3 on given answers": ({}, {}, 4096, False),
}


def train(target: Any, name: str, data: dict[bool, SampleDataset], args: argparse.Namespace) -> dict[str, Any]:
    fields, settings, draft_vocab_size, is_own = VARIANTS[name]
    set_seed(0)
    samples = data[is_own]
    counts: Counter = samples.token_counts
    vocabulary = None if draft_vocab_size is None else most_frequent_tokens(counts, draft_vocab_size)
    head = new_head(target, vocabulary, intermediate_size=768, **fields)
    settings = {"num_unrolls": 1 if head.config.eagle_version == 1 else 5} | settings
    trainer = EagleTrainer(
        head,
        target,
        EagleTrainingArguments(
            output_dir=str(args.output / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=6e-3,
            muon_learning_rate=2e-2,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=min(30, args.steps // 4),
            max_grad_norm=0.5,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=samples,
        data_collator=PaddingCollator(0),
    )
    start = time.perf_counter()
    trainer.train()
    share = 1.0 if vocabulary is None else coverage(counts, vocabulary)
    head.save_pretrained(args.output / name.replace(" ", "_"))
    return {"training_seconds": round(time.perf_counter() - start), "coverage": round(share, 4)}


def evaluate(target: Any, head: EagleDraftModel, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Acceptance of the first turns of every task, greedy."""
    head.eval().generation_config = TREE.to_generation_config()
    result, everything = {}, []
    for task in TASKS:
        rows = [json.loads(line) for line in (args.tasks / task / "question.jsonl").read_text().splitlines()]
        lengths: list[int] = []
        used = 0
        for row in rows:
            ids = encode(tokenizer, row["turns"][0])
            if ids.shape[1] > args.max_prompt or used == args.prompts:
                continue
            used += 1
            output = target.generate(
                ids, attention_mask=torch.ones_like(ids), assistant_model=head, do_sample=False,
                max_new_tokens=args.new_tokens, return_dict_in_generate=True,
            )  # fmt: skip
            lengths += output.acceptance_lengths[0]
        result[task] = {"prompts": used} | acceptance(lengths)
        everything += lengths
    return {"tasks": result, "all": acceptance(everything)}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"| head | {' | '.join(TASKS)} | all | accepted at depth 1 to 6 |", "|---" * (len(TASKS) + 3) + "|"]
    for name, result in results.items():
        cells = [f"{result['tasks'][task]['mean_acceptance_length']:.2f}" for task in TASKS]
        depths = " ".join(f"{share:.2f}" for share in result["all"]["accepted_at_depth"][:6])
        lines.append(f"| {name} | {' | '.join(cells)} | {result['all']['mean_acceptance_length']:.2f} | {depths} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", required=True, help="answers of the target itself")
    parser.add_argument("--conversations", required=True, help="the same rows with answers by others")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/variants"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=10, help="of every task")
    parser.add_argument("--max_prompt", type=int, default=350, help="most tokens of a prompt; longer ones are left out")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)
    folder = ROOT / "hub_cards" / "demo-llama-10m"
    target = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = {
        is_own: make_samples(path, tokenizer, max_length=384)
        for is_own, path in ((True, args.answers), (False, args.conversations))
    }
    path = args.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.variants:
        if name not in results:
            facts = train(target, name, data, args)
            head = EagleDraftModel.from_pretrained(args.output / name.replace(" ", "_"))
            results[name] = facts | evaluate(target, head, tokenizer, args)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(results[name]["all"]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
