"""Pick the prompts of the benchmark: six each of code, arithmetic and chat from conversations kept out of training.

python scripts/held_out_prompts.py --data valid.jsonl.xz > benchmarks/held_out_prompts.jsonl
"""

import argparse
import json
import random
from pathlib import Path

from train_demo_target import SIZES, read_conversations


DOMAINS = {"code": ("mbxp", "mathqa_code"), "math": ("gsm8k_train",), "chat": ("oasst_model_eval",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="conversations that were not trained on")
    parser.add_argument("--per_domain", type=int, default=6)
    parser.add_argument("--max_chars", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    for domain, sources in DOMAINS.items():
        size = SIZES["small"].__class__(**(vars(SIZES["small"]) | {"sources": frozenset(sources)}))
        prompts = sorted({messages[0]["content"] for messages in read_conversations(args.data, size)})
        prompts = [prompt for prompt in prompts if len(prompt) <= args.max_chars]
        random.Random(args.seed).shuffle(prompts)
        for prompt in prompts[: args.per_domain]:
            print(json.dumps({"domain": domain, "prompt": prompt}))


if __name__ == "__main__":
    main()
