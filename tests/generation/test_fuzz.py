"""
Hypothesis looks for a call with another result than plain `generate`, and shrinks what it finds. `make fuzz` gives it
ten minutes (`EAGLE_HF_FUZZ_SECONDS`), the default suite a few seconds.
"""

import os
import sys
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lossless_cases import draw_call, draw_tree, run_call


SECONDS = float(os.environ.get("EAGLE_HF_FUZZ_SECONDS", "0"))
IN_SMALL = 24  # examples


def check(call, tree):
    (outcome,) = run_call(call, [tree])
    assert not outcome.mismatch, (outcome, call, tree)


QUIET = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)


@settings(QUIET, max_examples=IN_SMALL, derandomize=True, phases=[Phase.generate, Phase.shrink])
@given(st.randoms(use_true_random=False))
def test_no_combination_of_options_changes_the_result(rng):
    call = draw_call(rng)
    check(call, draw_tree(rng, call))


@pytest.mark.skipif(not SECONDS, reason="`make fuzz` sets EAGLE_HF_FUZZ_SECONDS")
def test_for_minutes(capsys):
    end, examples = time.time() + SECONDS, 0

    @settings(QUIET, max_examples=50, phases=[Phase.generate, Phase.shrink])
    @given(st.randoms(use_true_random=False))
    def search(rng):
        nonlocal examples
        call = draw_call(rng)
        tree = draw_tree(rng, call)  # also when time is up: Hypothesis wants the same draws again
        if time.time() < end:
            check(call, tree)
            examples += 1

    while time.time() < end:
        search()
    with capsys.disabled():
        sys.stdout.write(f"\n{examples} examples in {SECONDS:.0f} s, no mismatch\n")
