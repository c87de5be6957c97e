"""Train a target of some hundred million parameters and its head on one GPU, ten minutes at a time:

    python benchmarks/gpu_training.py --output pair --minutes 9     # first the target, then the head; again to go on
    python benchmarks/gpu.py speed --pair pair                      # measures the pair

The texts are the sources of Python's own standard library, which every installation has: nothing is downloaded. A model
of code that small knows nothing, but is sure of much of what it writes, as large models are. Every call goes on from
the last checkpoint, stops in time, and says what is left. Some modules are held out; `speed` takes prompts from them.

`--tiny` does it all on a CPU in a minute, to test this script.
"""

import argparse
import itertools
import json
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from eagle_hf import DraftOptions
from eagle_hf.training import EagleTrainer, EagleTrainingArguments, most_frequent_tokens, new_head


ROOT = Path(__file__).parents[1]


class Deadline(TrainerCallback):
    """Stops training in time, with a checkpoint."""

    def __init__(self, end: float):
        self.end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() > self.end:
            control.should_training_stop = control.should_save = True


def source_files(limit: int | None) -> list[Path]:
    """Modules of the standard library, without its tests."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    files = [path for path in sorted(folder.rglob("*.py")) if not skipped & set(path.relative_to(folder).parts)]
    return files[:limit]


def token_blocks(tokenizer: PreTrainedTokenizerBase, files: list[Path], length: int) -> list[list[int]]:
    """All texts one after the other, cut into blocks of equal length."""
    ids: list[int] = []
    for path in files:
        ids += [*tokenizer(path.read_text(errors="ignore"), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def new_target(tokenizer: PreTrainedTokenizerBase, is_tiny: bool) -> LlamaForCausalLM:
    """A random target of 290 million parameters, or of next to none."""
    hidden_size, num_layers, num_heads = (64, 8, 4) if is_tiny else (1024, 24, 16)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=num_layers, num_attention_heads=num_heads, num_key_value_heads=num_heads // 2,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def arguments(folder: Path, steps: int, args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What both trainings share."""
    return {
        "output_dir": str(folder / "checkpoints"), "max_steps": steps, "per_device_train_batch_size": args.batch_size,
        "warmup_steps": min(100, steps // 10), "lr_scheduler_type": "cosine", "bf16": not args.tiny,
        "use_cpu": args.tiny, "save_strategy": "steps", "save_steps": max(steps // 10, 1), "save_total_limit": 1,
        "logging_steps": max(steps // 50, 1), "report_to": "none", "disable_tqdm": True, "seed": 0,
    } | more  # fmt: skip


def go_on(trainer: Trainer, folder: Path, deadline: float) -> bool:
    """Train from the last checkpoint on. Returns whether the training is complete; then the model is saved."""
    trainer.add_callback(Deadline(deadline))
    has_checkpoint = any((folder / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if has_checkpoint else None)
    done, total = trainer.state.global_step, trainer.args.max_steps
    print(f"{folder.name}: {done} of {total} steps", flush=True)
    if done < total:
        return False
    trainer.save_model(str(folder))
    (folder / "trained").touch()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pair and of what is unfinished")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this time")
    parser.add_argument("--target-steps", type=int, default=4000)
    parser.add_argument("--head-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a block")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with models of no size")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "hub_cards" / "demo-llama-10m", model_max_length=10**9)
    files = source_files(12 if args.tiny else None)
    held_out, files = files[::10], [path for number, path in enumerate(files) if number % 10]
    target_folder, head_folder = args.output / "target", args.output / "head"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "held_out.json").write_text(
        json.dumps([path.read_text(errors="ignore")[:4000] for path in held_out])
    )
    blocks = token_blocks(tokenizer, files, args.length)
    print(f"{len(files)} modules, {len(blocks):,} blocks of {args.length} tokens", flush=True)

    if not (target_folder / "trained").exists():
        rows = [{"input_ids": block, "labels": block} for block in blocks]
        settings = TrainingArguments(**arguments(target_folder, args.target_steps, args, learning_rate=6e-4))
        trainer = Trainer(new_target(tokenizer, args.tiny), settings, train_dataset=rows)
        if not go_on(trainer, target_folder, deadline):
            return
        tokenizer.save_pretrained(target_folder)

    if not (head_folder / "trained").exists():
        target = AutoModelForCausalLM.from_pretrained(
            target_folder, dtype=torch.float32 if args.tiny else torch.bfloat16
        )
        torch.manual_seed(0)
        counts = Counter(itertools.chain.from_iterable(blocks))
        head = new_head(target, most_frequent_tokens(counts, len(tokenizer) // 2))
        head.generation_config = DraftOptions().to_generation_config()
        rows = [{"input_ids": torch.tensor(block), "loss_mask": torch.ones(len(block)).long()} for block in blocks]
        settings = EagleTrainingArguments(**arguments(head_folder, args.head_steps, args, learning_rate=3e-4))
        if not go_on(EagleTrainer(head, target, settings, train_dataset=rows), head_folder, deadline):
            return
    print(f"{args.output} is trained: `python benchmarks/gpu.py speed --pair {args.output}` measures it.")


if __name__ == "__main__":
    main()
