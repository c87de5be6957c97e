"""Generates with a target split over the processes of this run, with and without a draft; see test_target_forms.py."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from architectures import VOCAB_SIZE
from doubles import random_draft
from transformers import AutoModelForCausalLM

from eagle_hf import DraftOptions


def main(target_folder: str, output: str) -> None:
    """Write what every process generated."""
    torch.set_num_threads(1)
    target = AutoModelForCausalLM.from_pretrained(target_folder, tp_plan="auto").eval()
    ids = torch.randint(3, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[1, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 12, "eos_token_id": None}
    texts = []
    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 20}):
        for head in (None, {}, {"eagle_version": 1}):
            draft = None if head is None else random_draft(target, **head)
            if draft is not None:
                draft.generation_config = DraftOptions(
                    num_assistant_tokens=6, draft_depth=3, draft_width=2
                ).to_generation_config()
            torch.manual_seed(0)
            texts.append(target.generate(**inputs, **sampling, assistant_model=draft).tolist())
    split = target.model.layers[0].self_attn.q_proj.weight
    local = split.to_local() if hasattr(split, "to_local") else split
    result = {"texts": texts, "local_rows": local.shape[0], "world_size": dist.get_world_size()}
    Path(f"{output}.{dist.get_rank()}").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
