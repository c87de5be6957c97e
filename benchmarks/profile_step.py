"""Where a step goes: time, operators and reads of its parts, on the pair of the golden vectors: `make profile`.

For any other pair: `eagle-hf bench --target T --draft D --profile`. What the parts are is said in
`eagle_hf.evaluation.profiling`.
"""

import argparse

import torch
from speed import TREES, golden_pair
from transformers.utils import logging

from eagle_hf import DraftOptions
from eagle_hf.evaluation.profiling import profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    target, draft, ids = golden_pair()
    trees = {
        name: DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width).to_generation_config()
        for name, (nodes, depth, width) in TREES.items()
    }
    text, _ = profile(target, draft, ids, repeats=args.repeats, trees=trees)
    print(text)


if __name__ == "__main__":
    main()
