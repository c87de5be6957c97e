"""How much there is to read: of the papers' core, and of one step. These numbers only shrink."""

import re
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft

import eagle_hf
from eagle_hf.drafting.drafter import Drafter
from eagle_hf.target.target import Target


PACKAGE = Path(eagle_hf.__file__).parent
CORE = (
    "tree", "verification", "head/modeling_eagle", "head/attention", "head/decoder_layer", "drafting/drafter",
    "drafting/true_rows", "drafting/levels", "drafting/dynamic", "drafting/masks", "drafting/rotary_table",
    "target/target", "target/forward", "target/masks", "target/features", "cache/keeping", "generation/decoding",
)  # fmt: skip
MOST_LINES_OF_THE_CORE = 2901
MOST_LINES_THAT_ASK = 3
# Files, and all their lines; two of `fast/`, with 175 lines, are those of a CPU.
MOST_OF_A_CALL = {"loop": (30, 4134), "call": (49, 7635)}
# What asks on which device something runs, or whether it is compiled.
ASKS_FOR_A_DEVICE = re.compile(r"device\.type|\.is_cuda|is_compiling|is_on_cpu|has_fixed_shapes")
ROOMS_THAT_MAY = ("fast", "evaluation", "cli", "training", "checkpoints")


def num_lines(files):
    return sum(len(path.read_text().splitlines()) for path in files)


def test_the_core_of_the_papers_stays_small():
    assert num_lines(PACKAGE / f"{name}.py" for name in CORE) <= MOST_LINES_OF_THE_CORE


def test_few_lines_ask_for_a_device():
    asking = [
        (path.relative_to(PACKAGE).as_posix(), line.strip())
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ROOMS_THAT_MAY
        for line in path.read_text().splitlines()
        if ASKS_FOR_A_DEVICE.search(line)
    ]
    assert len(asking) <= MOST_LINES_THAT_ASK, asking


@pytest.fixture
def traced():
    """Files of this package in which a function ran: in the second greedy call of a plain Llama, and in its loop."""
    target = tiny_target("llama")
    draft = random_draft(target)
    ids = torch.tensor([[5, 6, 7, 8]])
    call, loop, is_in_loop = set(), set(), [False]
    begin, end = Drafter.grow.__code__, Target.keep.__code__

    def watch(frame, event, argument):
        code = frame.f_code
        if event == "call":
            is_in_loop[0] |= code is begin
            if code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>":
                call.add(code.co_filename)
                if is_in_loop[0]:
                    loop.add(code.co_filename)
        elif event == "return" and code is end:
            is_in_loop[0] = False

    options = {"assistant_model": draft, "max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    target.generate(ids, **options)
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        target.generate(ids, **options)
    finally:
        sys.setprofile(before)
    return {"call": [Path(name) for name in call], "loop": [Path(name) for name in loop]}


def test_a_step_runs_through_few_files(traced):
    for part, (most_files, most_lines) in MOST_OF_A_CALL.items():
        files = sorted(path.relative_to(PACKAGE).as_posix() for path in traced[part])
        assert len(files) <= most_files, files
        assert num_lines(traced[part]) <= most_lines, files
    assert "drafting/dynamic.py" in [path.relative_to(PACKAGE).as_posix() for path in traced["loop"]]
    assert len(traced["loop"]) < len(traced["call"])
