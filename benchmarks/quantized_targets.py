"""
Whether greedy texts with a draft are those of plain `generate`, for targets in every quantisation that is installed.

A quantisation of weights alone gives every token the same arithmetic, whatever else is in the forward: texts differ at
near ties only, as in half precision. One that rounds activations with a scale of the whole forward lets every row
depend on the others: nodes of a tree, prompts of a batch. So a second column says how many texts change when plain
`generate` writes two copies of a prompt in one batch, and a third when a different prompt stands beside it.

    python benchmarks/quantized_targets.py --output benchmarks/results/quantized_targets.json
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import torch
from near_ties import gap
from speed import ROOT, demo_pair, encode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, QuantoConfig, TorchAoConfig
from transformers.utils import logging


TARGET = ROOT / "hub_cards" / "demo-llama-10m"
NEW_TOKENS = 48


def torchao(name: str, **options: object) -> Callable[[], TorchAoConfig]:
    """Makes a config of torchao's quantisation `name`, whose classes are imported when it is wanted."""

    def make() -> TorchAoConfig:
        import torchao.quantization as kinds

        return TorchAoConfig(getattr(kinds, name)(**options))

    return make


# By name: the package, and what makes the config. `dtype` is that of the layers that stay as they are.
KINDS: dict[str, tuple[str | None, torch.dtype, Callable[[], object] | None]] = {
    "none, float32": (None, torch.float32, None),
    "none, bfloat16": (None, torch.bfloat16, None),
    "bitsandbytes 4 bit (nf4)": (
        "bitsandbytes", torch.float32, lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "bitsandbytes LLM.int8()": ("bitsandbytes", torch.float32, lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes LLM.int8(), threshold 0": (
        "bitsandbytes", torch.float32, lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
    ),
    "torchao int8, weights only": ("torchao", torch.float32, torchao("Int8WeightOnlyConfig")),
    "torchao int8, activations too": ("torchao", torch.float32, torchao("Int8DynamicActivationInt8WeightConfig")),
    "torchao float8, weights only": ("torchao", torch.float32, torchao("Float8WeightOnlyConfig")),
    "quanto int8": ("optimum-quanto", torch.float32, lambda: QuantoConfig(weights="int8")),
    "quanto int4": ("optimum-quanto", torch.float32, lambda: QuantoConfig(weights="int4")),
}  # fmt: skip


def load(dtype: torch.dtype, make: Callable[[], object] | None) -> PreTrainedModel:
    """Loads the demo target, quantised or as it is."""
    more = {} if make is None else {"quantization_config": make()}
    return AutoModelForCausalLM.from_pretrained(TARGET, dtype=dtype, **more).eval()


def differing(target: PreTrainedModel, draft: PreTrainedModel, prompts: list[torch.Tensor]) -> dict[str, list[float]]:
    """Returns the gaps of the texts that differ from plain `generate` on the prompt alone, by what was different."""
    gaps: dict[str, list[float]] = {"with the draft": [], "plain, two copies": [], "plain, beside another": []}
    kwargs = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    for index, prompt in enumerate(prompts):
        plain = target.generate(prompt, **kwargs)[0]
        other = prompts[index - 1][:, : prompt.shape[1]]
        beside = torch.zeros_like(prompt)
        beside[:, prompt.shape[1] - other.shape[1] :] = other
        rows, mask = torch.cat([prompt, beside]), torch.ones(2, prompt.shape[1], dtype=torch.long)
        mask[1, : prompt.shape[1] - other.shape[1]] = 0
        texts = {
            "with the draft": target.generate(prompt, assistant_model=draft, **kwargs)[0],
            "plain, two copies": target.generate(prompt.repeat(2, 1), **kwargs)[0],
            "plain, beside another": target.generate(rows, attention_mask=mask, **kwargs)[0],
        }
        for name, text in texts.items():
            if (found := gap(target, plain, text)) is not None:
                gaps[name].append(found)
    return gaps


def main() -> None:
    """Prints and writes a row per quantisation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="names of quantisations, all by default")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    _, draft, tokenizer = demo_pair()
    draft.generation_config.draft_tree = "dynamic"  # a draft in every step, whatever it costs
    draft.generation_config.num_assistant_tokens, draft.generation_config.draft_retrieval = 15, 0
    lines = args.prompts.read_text().splitlines()[: args.num_prompts]
    prompts = [encode(tokenizer, json.loads(line)["prompt"]) for line in lines]
    rows = []
    for name, (package, dtype, make) in KINDS.items():
        if args.only and name not in args.only:
            continue
        row: dict[str, object] = {"quantisation": name, "dtype": str(dtype).removeprefix("torch.")}
        try:
            row["version"] = package and f"{package} {importlib.metadata.version(package)}"
            row["texts"] = len(prompts)
            row["gaps"] = differing(load(dtype, make), draft, prompts)
        except (ImportError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            row["not_run"] = str(error).strip().split("\n")[0][:200]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.output is not None:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        args.output.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
