"""
Every decoder of `transformers` in calls that are drawn jointly: dtype, cache, prompt, rows, options, head and tree, as
`make lossless` draws them for its targets. `make architectures` tries all decoders, the default suite two.
"""

import random
from dataclasses import replace

import architectures_table as page
import lossless_cases
import lossless_space
import pytest
from architecture_verdicts import REFUSED, SEVERAL_STREAMS
from every_decoder import NotBuiltError, model_types, tiny_decoder
from lossless_cases import draw_call, draw_tree, run_call
from transformers.utils import logging


NUM_CALLS, NUM_TREES = 3, 2
SAMPLE = ["bamba", "gemma3_text"]
TABLE = page.table(page.PAGE.read_text())
# Reasons that depend on the call; what a decoder is refused for in every call stands in the table.
REFUSALS = (
    "use_cache=False|layers of type Static|[Ss]tatic cache|static layer|several streams|cache_implementation=|"
    "has no list of \\d+ decoder layers|so that valid indices are"
)
# Rounding may send a token to other experts, or to none: logits jump, without a draft as well.
FLOAT32_ONLY = {"longcat_flash", "phimoe"}


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.sweep) for name in model_types()],
)
def test_the_text_is_exact_or_the_call_refused(monkeypatch, model_type):
    logging.set_verbosity_error()  # tiny vocabularies do not hold the special tokens of large ones
    if TABLE.get(model_type, page.NOT_TRIED) in (page.NOT_TRIED, REFUSED):
        pytest.skip("refused in every call, or not built")
    try:
        tiny_decoder(model_type)
    except NotBuiltError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(lossless_cases, "REFUSALS", [(REFUSALS, lambda call: True)])
    streams = {name for name in model_types() if name in SEVERAL_STREAMS}
    for module in (lossless_cases, lossless_space):
        monkeypatch.setattr(module, "HAS_SEVERAL_STREAMS", module.HAS_SEVERAL_STREAMS | streams)
    for index in range(NUM_CALLS):
        call, trees = drawn(model_type, index)
        for tree, outcome in zip(trees, run_call(call, trees), strict=True):
            assert not outcome.mismatch, (outcome, call, tree)
    lossless_cases._head.cache_clear()
    lossless_space.make_target.cache_clear()


def drawn(model_type, index):
    rng = random.Random(f"{model_type}-{index}")
    wanted = {
        "records": rng.choice(["none", "none", "scores"]),
        "cache": rng.choice(["default", "static", "kept", "fp8"]),
    }
    if model_type in FLOAT32_ONLY:
        wanted["dtype"] = "float32"
    wanted = {name: value for name, value in wanted.items() if value in lossless_space.CALLS[name]}
    call = replace(draw_call(rng, wanted), architecture=model_type)
    return call, [draw_tree(rng, call) for _ in range(NUM_TREES)]


def test_dimensions_vary():
    kinds = [drawn(name, index)[0].kind for name in ("llama", "bloom", "lfm2") for index in range(20)]
    for name, values in lossless_space.CALLS.items():
        expected = {"records": 2, "cache": 3}.get(name, min(len(values), 3))
        assert len({kind[name] for kind in kinds}) >= min(expected, len(values)), name
