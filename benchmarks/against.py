"""Compares the speed of this checkout with that of another one: old and new in alternating processes.

Every process loads the same target, writes the same text with and without a head, and reports its seconds. The head is
random, of the size of a trained one; which of its tokens are accepted is injected: after a tree was grown at its full
cost, one of its paths gets the target's own next tokens, as far as a seeded draw says. So both checkouts do the same
work in the same steps. Printed are the medians over rounds of old / new, with a 95 % interval of the paired median (by
ranks): above 1 the new checkout is faster.

    python benchmarks/against.py OLD_CHECKOUT                  a random target of the size of SmolLM2-135M
    python benchmarks/against.py OLD_CHECKOUT --target FOLDER  a target of your own, such as SmolLM2-135M itself
    python benchmarks/against.py OLD_CHECKOUT --compile        with a static cache and compiled steps
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
WAYS = ("plain", "greedy", "sampled")


def random_target() -> Any:
    """A Llama with random weights and the shape of SmolLM2-135M."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def random_head(target: Any, draft_vocab_size: int) -> Any:
    """An EAGLE-3 head with random weights for a target."""
    import torch

    from eagle_hf import EagleConfig, EagleDraftModel

    config = target.config.get_text_config(decoder=True)
    layers = config.num_hidden_layers
    torch.manual_seed(1)
    head = EagleDraftModel(
        EagleConfig(
            eagle_version=3, vocab_size=config.vocab_size, draft_vocab_size=min(draft_vocab_size, config.vocab_size),
            hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads, num_key_value_heads=config.num_key_value_heads,
            feature_layer_ids=[2, layers // 2, layers - 3],
        )
    ).to(target.dtype).eval()  # fmt: skip
    head.generation_config.draft_tree = "dynamic"
    return head


def drafter_class() -> type:
    """The class that grows trees, wherever a checkout has it."""
    try:
        from eagle_hf.drafting.drafter import Drafter
    except ImportError:
        from eagle_hf.drafting import Drafter
    return Drafter


def inject(truth: list[int], rate: float) -> None:
    """
    Lets drafts be accepted.

    Args:
        truth (`list[int]`): The new tokens of plain `generate`.
        rate (`float`): How likely each node of the path is right.
    """
    drafter = drafter_class()
    grow, learn = drafter.grow, drafter.read_accepted

    def grow_some_truth(self: Any, roots: Any, *args: Any, **kwargs: Any) -> Any:
        tree = grow(self, roots, *args, **kwargs)
        if tree.num_nodes == 1:
            return tree
        if not hasattr(self, "emitted"):
            self.emitted, self.draws = 1, random.Random(0)
        parents, node, tokens = tree.parents[0].tolist(), 0, tree.tokens.clone()
        for token in truth[self.emitted :]:
            if node not in parents or self.draws.random() > rate:
                break
            node = parents.index(node)
            tokens[0, node] = token
        return type(tree)(tokens, tree.parents, tree.depths, tree.scores, tree.max_depth)

    def learn_and_count(self: Any, features: Any, tokens: Any, counts: Any) -> None:
        if hasattr(self, "emitted"):
            self.emitted += counts[0]
        else:
            self.emitted, self.draws = 1 + counts[0], random.Random(0)
        learn(self, features, tokens, counts)

    drafter.grow, drafter.read_accepted = grow_some_truth, learn_and_count


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What one process measures: seconds of every way, medians of repeats in turns."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.target:
        from transformers import AutoModelForCausalLM

        target = AutoModelForCausalLM.from_pretrained(arguments.target, dtype=torch.float32).eval()
    else:
        target = random_target()
    import eagle_hf

    head = random_head(target, arguments.draft_vocab_size)
    vocab_size = target.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(3, vocab_size, (1, arguments.prompt_length), generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": arguments.new_tokens, "eos_token_id": None, "pad_token_id": 0}
    if arguments.compile:
        options |= {"cache_implementation": "static"}
    calls = {"plain": (None, False), "greedy": (head, False), "sampled": (head, True)}
    truths: dict[bool, list[int]] = {}
    for do_sample in (False, True):
        torch.manual_seed(3)
        truths[do_sample] = target.generate(ids, do_sample=do_sample, **options)[0, ids.shape[1] :].tolist()
    truth: list[int] = []
    inject(truth, arguments.rate)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    verifications = {}
    for repeat in range(arguments.repeats + 1 + arguments.compile):
        for way, (assistant, do_sample) in calls.items():
            truth[:] = truths[do_sample]
            torch.manual_seed(3)
            start = time.perf_counter()
            output = target.generate(
                ids, do_sample=do_sample, assistant_model=assistant, return_dict_in_generate=True, **options
            )
            took = time.perf_counter() - start
            if output.sequences[0, ids.shape[1] :].tolist() != truths[do_sample]:
                raise SystemExit(f"the {way} text is not that of plain generate")
            if repeat > arguments.compile:  # the first ones warm up
                seconds[way].append(took)
            verifications[way] = getattr(output, "target_forwards", arguments.new_tokens)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {"seconds": medians, "forwards": verifications, "package": str(Path(eagle_hf.__file__).parent)}


def interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median: order statistics, by the binomial distribution."""
    ordered, n = sorted(values), len(values)
    below, total = 0, 0.0
    while total + math.comb(n, below) / 2**n <= 0.025:
        total += math.comb(n, below) / 2**n
        below += 1
    below = max(below - 1, 0)
    return ordered[below], ordered[n - 1 - below]


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs old and new in turns, and pairs them."""
    own = [argument for argument in sys.argv[1:] if argument != arguments.old]
    pairs: list[dict[str, dict[str, Any]]] = []
    for number in range(arguments.rounds):
        pair = {}
        order = [("old", Path(arguments.old)), ("new", ROOT)]
        for name, checkout in order if number % 2 else order[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                record = Path(folder) / "record.json"
                environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src"), "HF_HUB_OFFLINE": "1"}
                command = [sys.executable, __file__, "--record", str(record), *own]
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                pair[name] = json.loads(record.read_text())
        if pair["old"]["package"] == pair["new"]["package"]:
            raise SystemExit(f"both processes imported {pair['old']['package']}: give the folder of another checkout")
        pairs.append(pair)
        print(f"round {number + 1} of {arguments.rounds}: {ratios(pair)}", flush=True)
    result: dict[str, Any] = {"rounds": pairs}
    for way in WAYS:
        values = [ratios(pair)[way] for pair in pairs]
        low, high = interval(values)
        result[way] = {"old / new": round(statistics.median(values), 4), "interval": [round(low, 4), round(high, 4)]}
        print(f"{way:8} old / new {statistics.median(values):.3f}   95 % interval {low:.3f} to {high:.3f}")
    return result


def ratios(pair: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Old / new seconds: of plain `generate` as they are, of the others in units of plain ones of the same process."""
    old, new = pair["old"]["seconds"], pair["new"]["seconds"]
    relative = {way: (old[way] / old["plain"]) / (new[way] / new["plain"]) for way in WAYS[1:]}
    return {way: round(value, 4) for way, value in ({"plain": old["plain"] / new["plain"]} | relative).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", help="folder of the other checkout")
    parser.add_argument("--target", help="folder of a target; a random one of 135M parameters if left out")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--draft-vocab-size", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=0.75, help="how likely each node of the path is right")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", help="where to write the result")
    parser.add_argument("--record", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(run(arguments)))
        return
    if arguments.old is None:
        parser.error("give the folder of the other checkout")
    result = compare(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
