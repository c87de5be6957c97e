"""
Trains a tiny head in a process of its own, for tests of several processes and of processes that are killed:

    python run_training.py OUTPUT '{"max_steps": 4}' [--kill-at N]

With `--kill-at N` the process kills itself at the N-th call of what saving a checkpoint does to files.
"""

import builtins
import json
import os
import shutil
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from architectures import tiny_target  # noqa: E402
from doubles import random_draft  # noqa: E402

from eagle_hf.training import EagleTrainer, EagleTrainingArguments, durable_checkpoints  # noqa: E402


def kill_at(count: int) -> None:
    """Make the process kill itself at the `count`-th operation on files."""
    calls = []

    def wrap(module, name):
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            if name != "open" or ("checkpoint-" in str(args[0]) and "w" in str(args[1:2])):
                calls.append(name)
                if len(calls) == count:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, wrapped)

    wrap(builtins, "open")
    wrap(os, "replace")
    wrap(os, "fsync")
    wrap(torch, "save")
    wrap(shutil, "rmtree")
    wrap(durable_checkpoints, "find_problem")


def main() -> None:
    output, settings, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    target = tiny_target("llama")
    generator = torch.Generator().manual_seed(0)
    dataset = [
        {"input_ids": torch.randint(3, 90, (16,), generator=generator), "loss_mask": (torch.arange(16) >= i % 7).long()}
        for i in range(64)  # not equally many trained tokens in all of them
    ]
    arguments = {
        "output_dir": output, "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "steps",
        "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "max_steps": 6, "num_unrolls": 3,
        "disable_tqdm": True, "save_total_limit": 2, "ddp_backend": "gloo" if "RANK" in os.environ else None,
    }  # fmt: skip
    trainer = EagleTrainer(
        random_draft(target, num_hidden_layers=2, initializer_range=0.05),
        target,
        EagleTrainingArguments(**(arguments | json.loads(settings))),
        train_dataset=dataset,
    )
    resume = bool(durable_checkpoints.complete_checkpoints(output))
    if "--kill-at" in flags:
        kill_at(int(flags[flags.index("--kill-at") + 1]))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(Path(output) / "final"))
    if trainer.args.process_index == 0:
        wrapped = trainer.model_wrapped
        kinds = [type(wrapped).__name__, *{type(p.data).__name__ for p in wrapped.parameters()}]
        (Path(output) / "wrapped.json").write_text(json.dumps(kinds))
        (Path(output) / "log.json").write_text(json.dumps(trainer.state.log_history))
    trainer.accelerator.wait_for_everyone()  # what the group's threads still hold is let go
    trainer.accelerator.end_training()  # a process that exits while they run may be aborted


if __name__ == "__main__":
    main()
