"""A trainer of a tiny head on a tiny target's own greedy texts."""

import torch

from eagle_hf.training import EagleTrainer, EagleTrainingArguments


def make_trainer(tmp_path, target, draft, num_samples=64, **arguments):
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 90, (num_samples, 4), generator=generator)
    texts = target.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    dataset = [{"input_ids": text, "loss_mask": (torch.arange(20) >= 4).long()} for text in texts]
    settings = {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "logging_steps": 5,
        "save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 5e-3, "max_steps": 30,
        "num_unrolls": 3, "disable_tqdm": True,
    }  # fmt: skip
    return EagleTrainer(
        draft, target, EagleTrainingArguments(**(settings | arguments)), train_dataset=dataset, eval_dataset=dataset
    )
