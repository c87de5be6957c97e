"""
Tests that `make test-bf16` cannot run with a bfloat16 target, each with its reason. `test_target_dtype.py` lets the
list only shrink.
"""

# Beginning of a test's name, from the folder `tests` on -> reason.
EXCEPTIONS: dict[str, str] = {
    "generation/test_golden.py": "compares with trees and texts that the reference implementation computed in float32",
}


def reason_of(nodeid: str) -> str:
    """Returns the reason for which a test is not run, or nothing."""
    name = nodeid.removeprefix("tests/")
    return next((reason for beginning, reason in EXCEPTIONS.items() if name.startswith(beginning)), "")
