"""
Tests that `make test-bf16` cannot run with a bfloat16 target, each with its reason. `test_target_dtype.py` lets the
list only shrink.
"""

# Beginning of a test's name, from the folder `tests` on -> reason.
_REFERENCE = "compares with numbers that the reference implementation computed in float32"
_ROUNDING = "compares more closely than bfloat16 resolves, after operations that round nodes in another way than tokens"
_NOT_JOINED = "hands a float32 head and modules of the target to a function, without `target_modules.py` in between"

EXCEPTIONS: dict[str, str] = {
    "generation/test_golden.py": _REFERENCE,
    "target/test_forward.py::test_every_node_of_a_bushy_tree[falcon-multi-query]": _ROUNDING,
    "target/test_forward.py::test_eager_attention_gets_additive_masks": _ROUNDING,
    "generation/test_records.py::test_every_architecture[qwen2-mixed-ragged]": _ROUNDING,
    "generation/test_records.py::test_every_architecture[gpt-oss-sinks-ragged]": _ROUNDING,
    "generation/test_contract.py::test_transition_scores[ragged-qwen3-moe]": _ROUNDING,
    "training/test_trainer.py::test_bfloat16_autocast_trains_float32_weights": "is about heads in float32, and those "
    "of the tests follow their targets",
    "training/objectives/test_eagle3.py::test_losses_accuracies_and_gradients_are_the_references": _REFERENCE,
    "training/objectives/test_eagle3.py::test_unrolled_rows_are_what_drafting_computes": _NOT_JOINED,
    "training/objectives/test_eagle1.py::test_losses_and_gradients_are_the_references": _REFERENCE,
    "training/objectives/test_eagle1.py::test_harmonised_steps_are_what_drafting_computes": _NOT_JOINED,
    "training/objectives/test_eagle1.py::test_noise_is_added_to_what_the_head_reads": _NOT_JOINED,
    "target/test_borrowed_lm_head.py::test_drafts_are_those_of_a_plain_forward": _NOT_JOINED,
    "target/test_borrowed_lm_head.py::test_feature_regression": _NOT_JOINED,
}  # fmt: skip


def reason_of(nodeid: str) -> str:
    """Returns the reason for which a test is not run, or nothing."""
    name = nodeid.removeprefix("tests/")
    return next((reason for beginning, reason in EXCEPTIONS.items() if name.startswith(beginning)), "")
