"""
The table of layouts in docs/checkpoints.md, from what the code does. `python tests/checkpoints/layouts_table.py` writes
it."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))
import torch  # noqa: E402
from doubles import random_draft  # noqa: E402
from layouts import SAMPLES, golden_errors, tiny_llama  # noqa: E402

from eagle_hf import EagleDraftModel  # noqa: E402
from eagle_hf.checkpoints import export_checkpoint  # noqa: E402
from eagle_hf.checkpoints.exporting import LAYOUTS  # noqa: E402


PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- layouts: written by tests/checkpoints/layouts_table.py -->", "<!-- /layouts -->"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LATER = {"feature_layer_ids": [2, 4, 5]}
PARALLEL = LATER | {"parallel_drafting": True, "mask_token_id": 5, "num_hidden_layers": 4, "own_embed_tokens": True}
OWN_CLASS, INDEPENDENT, TABLES = "its own class", "an independent forward", "a plain forward of tensors made by a test"

# Layout; a sample head with how to compare it, or fields of a head like those that have it; what it is compared with.
ROWS: list[tuple[str, str | dict[str, Any], dict[str, Any], str]] = [
    ("SafeAILab EAGLE-1 and EAGLE-2 for Llama-2 and Vicuna", "safeailab-eagle1-vicuna", {}, OWN_CLASS),
    ("SafeAILab EAGLE-1 and EAGLE-2 for Llama-3, HASS", "safeailab-eagle1-llama3", {}, OWN_CLASS),
    ("SafeAILab EAGLE-3", "safeailab-eagle3-llama3", {}, OWN_CLASS),
    ("SafeAILab EAGLE-3, narrower than its target", "safeailab-eagle3-target_hidden_size", {}, OWN_CLASS),
    ("speculators EAGLE-3", "speculators-0.9-eagle3-llama", {}, OWN_CLASS),
    ("speculators EAGLE-3.1", "speculators-0.9-eagle3.1-llama-norm_before_fc-norm_output", {}, OWN_CLASS),
    ("speculators EAGLE-3, two Qwen3 layers", LATER | {"num_hidden_layers": 2, "qk_norm": True}, {}, TABLES),
    ("speculators P-EAGLE", PARALLEL, {}, TABLES),
    ("SpecForge", "specforge-eagle3-sglang", {"bfloat16_embeds": True}, OWN_CLASS),
    ("SpecForge EAGLE-3.1, also with `aux_norm_*`", LATER | {"fc_norm": True}, {}, TABLES),
    ("SpecForge P-EAGLE", PARALLEL | {"norm_before_residual": True}, {}, TABLES),
    ("Amazon P-EAGLE", PARALLEL, {}, TABLES),
    (
        "Model Optimizer (NVIDIA), TorchSpec",
        "modelopt-eagle3-llama",
        {"bfloat16_embeds": True, "prefix": "serving_default_rope_", "rope_parameters": ROPE},
        INDEPENDENT,
    ),
    ("Model Optimizer, two layers", LATER | {"num_hidden_layers": 2}, {}, TABLES),
    ("NVIDIA's heads for gpt-oss, norm before `fc`", "nvidia-gptoss-v3-norm_before_fc", {}, INDEPENDENT),
    (
        "NVIDIA's heads for gpt-oss, no auxiliary features",
        {"use_fc": False, "feature_layer_ids": [-1]},
        {},
        TABLES,
    ),
    ("Kimi and DeepSeek heads (latent attention)", "kimi-mla-eagle3", {}, OWN_CLASS),
    (
        "DeepSpec (DeepSeek's heads for Qwen3)",
        {"feature_layer_ids": [1, 2, 4, 6, 7], "qk_norm": True, "own_embed_tokens": True},
        {},
        TABLES,
    ),
    ("AngelSlim", "angelslim-eagle3", {"bfloat16_embeds": True}, OWN_CLASS),
    ("NeMo Automodel", LATER | {"fc_norm": True, "norm_output": True, "own_embed_tokens": True}, {}, TABLES),
]


def writes(draft: EagleDraftModel) -> list[str]:
    """Layouts that a head can be written in, tried out: all of its tensors come back."""
    found = []
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                again = EagleDraftModel.from_pretrained(export_checkpoint(draft, folder, layout, target="org/target"))
            except ValueError:
                continue
            tensors = again.state_dict()
            same = [torch.equal(t, tensors[n]) for n, t in draft.state_dict().items() if n != "embed_tokens.weight"]
            if not all(same):
                raise AssertionError(f"a head came back changed from {layout}")
            found.append(layout)
    return found


def rows() -> list[str]:
    """Rows of the table; every head is compared and written now."""
    lines = []
    for layout, head, how, source in ROWS:
        verified = source
        if isinstance(head, str):
            draft, error = EagleDraftModel.from_pretrained(SAMPLES / head), max(golden_errors(head, **how).values())
            if error > 1e-4:
                raise AssertionError(f"{layout} is off by {error}")
            verified = f"{source}, within {'1e-5' if error < 1e-5 else '1e-4'}"
        else:
            draft = random_draft(tiny_llama(), **head)
        lines.append(f"| {layout} | yes | {', '.join(f'`{name}`' for name in writes(draft))} | {verified} |")
    for other in ("DFlash", "MTP", "Medusa, MLP speculators, other drafters"):
        lines.append(f"| {other} | refused, with what runs it | | |")
    return lines


def render(page: str) -> str:
    """The page with its table made anew."""
    head = ["| layout | reads | its heads can be written as | compared with |", "|---|---|---|---|"]
    table = "\n".join([BEGIN, *head, *rows(), END])
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda match: table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
