"""Train the EAGLE-3 head of the demo pair.

A head learns what its target writes, so the answers of the training conversations are first written again by the target
(half of them greedily, half sampled at temperature 1), then the head is trained on them by training-time test:

    python scripts/train_demo_head.py answers --data train.jsonl.xz --target hub_cards/demo-llama-7m --output runs/head
    python scripts/train_demo_head.py train --target hub_cards/demo-llama-7m --output runs/head

Both go on where they were interrupted when they are started again. On two AMD EPYC cores with bfloat16 instructions
the answers took 18 minutes and the training 39. On a GPU they were not timed.
glibc returns large blocks to the system and faults them in again, which costs more than half of the time on a CPU (3.2
against 1.4 s for a batch of 16 texts of 384 tokens); these variables keep it from doing so:

    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000
"""

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from train_demo_target import SIZES, read_conversations
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, set_seed

from eagle_hf import DraftOptions, EagleDraftModel
from eagle_hf.training import EagleTrainer, EagleTrainingArguments, coverage, most_frequent_tokens, new_head
from eagle_hf.training.durable_checkpoints import complete_checkpoints


DRAFT_VOCAB_SIZE = 4096
MAX_LENGTH = 384


def write_answers(args: argparse.Namespace) -> None:
    """Let the target answer the prompts; one JSON line of token ids per conversation."""
    tokenizer = AutoTokenizer.from_pretrained(args.target, padding_side="left")
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32).to(args.device).eval()
    prompts = sorted({messages[0]["content"] for messages in read_conversations(args.data, SIZES["small"])})
    random.Random(args.seed).shuffle(prompts)
    prompts = prompts[: args.num_prompts]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    encoded = [ids for ids in tokenizer(texts, add_special_tokens=False).input_ids if len(ids) <= args.max_length // 2]
    encoded.sort(key=len)  # little padding
    batches = [encoded[i : i + args.batch_size] for i in range(0, len(encoded), args.batch_size)]
    random.Random(args.seed).shuffle(batches)

    path = args.output / "answers.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()[: text.count("\n")]]  # without a torn last line
    first = max((row["batch"] for row in rows), default=0)  # this one may be incomplete: it is written again
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["batch"] < first))
    start, num_tokens = time.time(), 0
    with open(path, "a") as file:
        for number, batch in enumerate(batches):
            if number < first:
                continue
            inputs = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(args.device)
            length = inputs["input_ids"].shape[1]
            sampled = number % 2 and not args.greedy
            sampling = {"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}
            torch.manual_seed(args.seed + number)
            output = target.generate(**inputs, max_new_tokens=args.max_length - length, **sampling)
            for prompt_ids, row in zip(batch, output[:, length:].tolist(), strict=True):
                answer = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
                num_tokens += len(answer)
                file.write(json.dumps({"batch": number, "prompt": prompt_ids, "answer": answer}) + "\n")
            file.flush()
            if number % 10 == 0:
                rate = num_tokens / (time.time() - start)
                print(f"batch {number + 1} of {len(batches)}, {num_tokens} tokens, {rate:.0f} tokens/s", flush=True)


class Answers(Dataset):
    """Token ids of the target's answers to their prompts; only the answers are trained."""

    def __init__(self, path: Path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.rows = [row for row in rows if len(row["answer"]) > 8]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt, answer = self.rows[index]["prompt"], self.rows[index]["answer"]
        ids = (prompt + answer)[:MAX_LENGTH]
        return {"input_ids": ids, "loss_mask": ([0] * len(prompt) + [1] * len(answer))[:MAX_LENGTH]}

    def counts(self) -> Counter:
        """How often each token occurs in the answers."""
        return Counter(token for row in self.rows for token in row["answer"])


class RightPadding:
    """Collate samples of different lengths. No token sees what is to its right, so padding there needs no mask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)

        def pad(values: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (length - len(row)) for row in values])

        ids = [sample["input_ids"] for sample in samples]
        return {
            "input_ids": pad(ids, self.pad_token_id),
            "loss_mask": pad([sample["loss_mask"] for sample in samples], 0),
        }


def make_head(target: Any, args: argparse.Namespace, counts: Counter) -> EagleDraftModel:
    """The head to train: a new one, or one that is trained already."""
    vocabulary = most_frequent_tokens(counts, DRAFT_VOCAB_SIZE)
    if args.head is not None:
        head = EagleDraftModel.from_pretrained(args.head)
        vocabulary = head.draft_to_target_ids
    else:
        head = new_head(target, vocabulary, intermediate_size=768)
    head.config.base_model_name_or_path = Path(args.target).name
    print(f"draft vocabulary of {len(vocabulary)} tokens covers {coverage(counts, vocabulary):.2%} of the answers")
    return head


def train(args: argparse.Namespace) -> None:
    """Train the head on the answers, and save it as it would be pushed."""
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    dataset = Answers(args.output / "answers.jsonl")
    head = make_head(target, args, dataset.counts())
    print(f"{len(dataset)} answers, head of {head.num_parameters() / 1e6:.2f}M parameters")
    checkpoints = args.output / "checkpoints"
    trainer = EagleTrainer(
        head,
        target,
        EagleTrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=args.epochs,
            max_steps=args.max_steps or -1,
            per_device_train_batch_size=16,
            train_sampling_strategy="group_by_length",
            learning_rate=6e-3,
            muon_learning_rate=2e-2,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            max_grad_norm=0.5,
            bf16=True,
            num_unrolls=args.num_unrolls,
            logging_steps=50,
            save_steps=250,
            save_total_limit=2,
            use_cpu=args.device == "cpu",
            seed=args.seed,
            report_to="none",
        ),
        train_dataset=dataset,
        data_collator=RightPadding(tokenizer),
    )
    trainer.train(resume_from_checkpoint=bool(complete_checkpoints(checkpoints)))
    # Sixteen rows with the root: a matrix product over 17 takes a quarter longer here.
    options = DraftOptions(num_assistant_tokens=15, draft_depth=6, draft_width=4, draft_threshold=0.01)
    head.generation_config = options.to_generation_config()
    head.save_pretrained(args.output / "head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="stage", required=True)
    answers, training = subparsers.add_parser("answers"), subparsers.add_parser("train")
    for subparser in (answers, training):
        subparser.add_argument("--target", required=True, help="folder of the target")
        subparser.add_argument(
            "--output", type=Path, required=True, help="folder for the answers, checkpoints and the head"
        )
        subparser.add_argument("--seed", type=int, default=0)
        subparser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    answers.add_argument("--data", type=Path, required=True, help="training conversations, as for the target")
    answers.add_argument("--num_prompts", type=int, default=7000)
    answers.add_argument("--greedy", action="store_true", help="no sampled answers: for the target's own stage 3")
    answers.add_argument("--batch_size", type=int, default=128)
    answers.add_argument("--max_length", type=int, default=MAX_LENGTH, help="most tokens of prompt and answer")
    training.add_argument("--head", help="train this head further instead of a new one")
    training.add_argument("--epochs", type=float, default=3)
    training.add_argument("--num_unrolls", type=int, default=5, help="the demo drafts five tokens deep")
    training.add_argument("--max_steps", type=int, help="fewer steps than the recipe's, for trials")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_answers(args) if args.stage == "answers" else train(args)


if __name__ == "__main__":
    main()
