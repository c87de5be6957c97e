"""
What a step costs at long contexts, with cache layers that copy all their states in every forward (`DynamicLayer`) and
with those that a verification lends itself (`GrowingLayer`).

    python benchmarks/long_context.py --lengths 1024 8192
"""

import argparse
import statistics
import time

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from eagle_hf.cache.keeping import keep_nodes
from eagle_hf.cache.lending import LentCache
from eagle_hf.target.forward import forward_tree
from eagle_hf.target.masks import TreeMasks
from eagle_hf.tree import DraftTree


def step_time(model: LlamaForCausalLM, length: int, num_nodes: int, grows: bool, steps: int) -> float:
    """Median milliseconds of a verification and of keeping two nodes, `length` columns being in the cache."""
    cache = DynamicCache(config=model.config)
    shape = (1, model.config.num_key_value_heads, length, model.config.head_dim)
    for index in range(model.config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), index)
    lent = LentCache(cache, max_length=length + 2 * steps) if grows else None
    tree = DraftTree.from_paths(3, [list(range(4, 3 + num_nodes))])
    masks = TreeMasks(model.config, cache, prompt_mask=None)
    times, lengths = [], [length]
    for _ in range(steps):
        start = time.perf_counter()
        forward_tree(model, tree, torch.tensor([[lengths[0]]]), lengths, cache, masks)
        lengths = keep_nodes(cache, lengths, [[0, 1]], num_nodes)
        times.append(time.perf_counter() - start)
    if lent is not None:
        lent.give_back(is_seen=True)
    return 1e3 * statistics.median(times[1:])  # the first one makes room


@torch.no_grad()
def main() -> None:
    """Print a row per context length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--nodes", type=int, default=9)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    config = LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=args.layers, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=1 << 20,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    print(f"{args.layers} layers, {args.nodes} nodes, {torch.get_num_threads()} threads; ms per step")
    print("columns | plain layers | growing layers | ratio")
    for length in args.lengths:
        plain, grown = (step_time(model, length, args.nodes, grows, args.steps) for grows in (False, True))
        print(f"{length:7,} | {plain:.2f} | {grown:.2f} | {plain / grown:.2f}")


if __name__ == "__main__":
    main()
