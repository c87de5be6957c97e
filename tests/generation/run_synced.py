"""
Generates on two ranks that have to run the target's forwards together:

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python run_synced.py OUTPUT KIND

`KIND` is `lockstep` (every forward of the target is a collective) or `sharded` (FSDP2, the embedding a unit as well).
"""

import json
import sys
from datetime import timedelta
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from architectures import tiny_target  # noqa: E402
from conftest import use_options  # noqa: E402
from doubles import random_draft  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

import eagle_hf  # noqa: E402, F401
from eagle_hf.versions import cache_of


def shard(target) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in (*target.model.layers, target.model.embed_tokens, target.lm_head, target):
        fully_shard(unit, mesh=mesh)


def main() -> None:
    torch.set_num_threads(1)
    output, kind = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    rank = dist.get_rank()
    target = tiny_target("mistral-sliding")
    draft = use_options(random_draft(target, eagle_version=1), num_assistant_tokens=8, draft_depth=3, draft_width=2)
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(rank))
    kwargs = {"do_sample": True, "top_k": 4, "return_dict_in_generate": True, "max_new_tokens": 24 - 14 * rank}
    torch.manual_seed(rank)
    text = target.generate(ids, **kwargs, eos_token_id=None).sequences
    kwargs["eos_token_id"] = int(text[0, 7 + 4])  # rows end at different times
    torch.manual_seed(rank)
    plain = target.generate(ids, **kwargs).sequences
    torch.manual_seed(rank)
    alone = target.generate(ids, **kwargs, assistant_model=draft)

    forwards = 0

    def count(*args) -> None:
        nonlocal forwards
        forwards += 1
        if kind == "lockstep":
            dist.all_reduce(torch.ones(1))

    if kind == "sharded":
        shard(target)
    target.register_forward_pre_hook(count)
    results = []
    for _ in range(2):
        torch.manual_seed(rank)
        results.append(target.generate(ids, **kwargs, assistant_model=draft, synced_gpus=True))
    dist.barrier()
    (output / f"{kind}-{rank}.json").write_text(json.dumps({
        "plain": plain.tolist(),
        "ours": [result.sequences.tolist() for result in results],
        "cached": [cache_of(result).get_seq_length() for result in results],
        "needed": alone.target_forwards,
        "forwards": forwards,
    }))  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
