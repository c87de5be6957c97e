"""
Computes the gradients of a tiny head that is sharded over two processes (FSDP2), each with a text of its own:

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python run_fsdp.py OUTPUT
"""

import sys
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from architectures import tiny_target  # noqa: E402
from doubles import random_draft  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from eagle_hf.training import FrozenTarget, training_time_test_loss  # noqa: E402
from eagle_hf.training.head_in_training import HeadInTraining  # noqa: E402


def head_and_objective(rank: int):
    """The head, the same in all processes, and the objective on the text of a process."""
    target = tiny_target("llama")
    head = random_draft(target, num_hidden_layers=2, initializer_range=0.1).train()
    frozen = FrozenTarget(target, head.config, torch.device("cpu"))
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(rank))
    signal = frozen.read({"input_ids": ids})
    return HeadInTraining(head), partial(
        training_time_test_loss, features=signal.features, input_ids=ids, target_logits=signal.logits,
        loss_mask=torch.ones_like(ids), embed_tokens=frozen.embed_tokens, num_steps=3,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    head, objective = head_and_objective(dist.get_rank())
    for layer in head.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(head, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in head.parameters())
    head(objective=objective).loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in head.named_parameters()}
    if dist.get_rank() == 0:
        save_file(gradients, sys.argv[1])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
