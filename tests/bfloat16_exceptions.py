"""
Tests that `make test-bf16` cannot run with a bfloat16 target, each with its reason. `test_target_dtype.py` lets the
list only shrink.
"""

from fnmatch import fnmatchcase


# Beginning of a test's name, from the folder `tests` on -> reason. A `*` stands for any letters.
_REFERENCE = "compares with numbers that the reference implementation computed in float32"
_ROUNDING = "compares more closely than bfloat16 resolves, after operations that round nodes in another way than tokens"
_RECURRENT = "compares texts or states closely, and recurrent states carry rounding on, without a draft as well"
_PROCESS = (
    "starts another process, where the attention of targets is that of PyTorch, which rounds nodes in its own way"
)
_NOT_JOINED = "hands a float32 head and modules of the target to a function, without `target_modules.py` in between"
_FEW_TOKENS = "looks for a difference of acceptance that so few tokens of the demo pair show in float32 alone"

EXCEPTIONS: dict[str, str] = {
    "generation/test_golden.py": _REFERENCE,
    "target/test_forward.py::test_every_node_of_a_bushy_tree[falcon-multi-query]": _ROUNDING,
    "target/test_forward.py::test_eager_attention_gets_additive_masks": _ROUNDING,
    "generation/test_records.py::test_every_architecture[qwen2-mixed-ragged]": _ROUNDING,
    "generation/test_records.py::test_every_architecture[gpt-oss-sinks-ragged]": _ROUNDING,
    "generation/test_contract.py::test_transition_scores[ragged-qwen3-moe]": _ROUNDING,
    "generation/test_contract.py::test_custom_processors_are_called_once_per_token_with_its_true_prefix"
    "[ragged-qwen3-moe]": _ROUNDING,
    "generation/test_lossless.py::test_output_and_generator_are_those_of_plain_generate[*sampled-falcon": _ROUNDING,
    "generation/test_every_decoder.py::test_the_verdict_is_that_of_the_table_and_the_text_exact[deepseek_v32]": "its "
    "indexer takes the best few columns, and more of them tie in half precision",
    "generation/test_every_decoder.py::test_the_verdict_is_that_of_the_table_and_the_text_exact[zamba2]": _RECURRENT,
    "generation/test_kept_rows.py::test_nothing_is_kept_with_purely_recurrent_caches": _RECURRENT,
    "target/test_recurrent.py::test_text_and_generator_are_those_of_plain_generate[*mamba2]": _RECURRENT,
    "target/test_recurrent.py::test_text_and_generator_are_those_of_plain_generate[*nemotron_h]": _RECURRENT,
    "generation/test_text.py::test_batches_with_padding_of_minus_one[greedy-mistral-sliding]": _ROUNDING,
    "generation/test_static_caches.py::test_text_and_cache_are_those_of_plain_generate[qwen3_next": _RECURRENT,
    "generation/test_static_caches.py::test_a_text_that_fits_the_window[gpt-oss-sinks-named]": _ROUNDING,
    "generation/test_synced_ranks.py::test_waiting_for_other_ranks_changes_nothing[ragged-mistral-sliding]": _ROUNDING,
    "training/test_several_processes.py::test_a_sharded_head_has_the_gradients_of_a_whole_one": _PROCESS,
    "target/test_recurrent.py::test_returned_states_are_those_of_plain_generate[": _RECURRENT,
    "cli/test_prepare.py::test_killed_and_started_again_it_writes_the_file_of_a_run_that_was_left_alone": _PROCESS,
    "cli/test_train_record.py::test_a_run_that_was_interrupted_twice_tells_what_its_log_tells": _PROCESS,
    "training/test_trainer.py::test_bfloat16_autocast_trains_float32_weights": "is about heads in float32, and those "
    "of the tests follow their targets",
    "training/objectives/test_eagle3.py::test_losses_accuracies_and_gradients_are_the_references": _REFERENCE,
    "training/objectives/test_eagle3.py::test_unrolled_rows_are_what_drafting_computes": _NOT_JOINED,
    "training/objectives/test_eagle1.py::test_losses_and_gradients_are_the_references": _REFERENCE,
    "training/objectives/test_eagle1.py::test_harmonised_steps_are_what_drafting_computes": _NOT_JOINED,
    "training/objectives/test_eagle1.py::test_noise_is_added_to_what_the_head_reads": _NOT_JOINED,
    "target/test_borrowed_lm_head.py::test_drafts_are_those_of_a_plain_forward": _NOT_JOINED,
    "target/test_borrowed_lm_head.py::test_feature_regression": _NOT_JOINED,
    "head/test_modeling_eagle.py::test_outputs_are_the_references": _REFERENCE,
    "drafting/test_drafter.py::test_a_threshold_leaves_out_exactly_the_less_probable_nodes[A_eagle1": _NOT_JOINED,
    "drafting/test_drafter.py::test_early_stop_changes_nothing_and_saves_forwards[A_eagle1": _NOT_JOINED,
    "drafting/test_drafter.py::test_growing_leaves_the_cache_of_true_features_as_it_was[A_eagle1": _NOT_JOINED,
    "drafting/test_drafter.py::test_ragged_rows_draft_as_if_they_were_alone[A_eagle1": _NOT_JOINED,
    "drafting/test_drafter.py::test_scores_are_float32_and_no_child_is_orphaned_in_half_precision"
    "[A_eagle1": _NOT_JOINED,
    "inspection/test_inspection.py::TestDemoPair::test_a_wrong_residual_is_found": _FEW_TOKENS,
    "inspection/test_inspection.py::TestDemoPair::test_the_command": _FEW_TOKENS,
    "training/objectives/test_eagle1.py::test_every_unroll_learns_its_own_feature_and_token": _NOT_JOINED,
    "training/test_trained_rows.py::test_a_batch_of_four_trains_like_four_batches_of_one": _ROUNDING,
    "training/test_unrolling.py::test_unrolled_rows_are_what_drafting_computes": _NOT_JOINED,
    "training/test_vocabulary.py::test_a_cut_head_drafts_what_the_whole_one_drafts_among_its_tokens": _NOT_JOINED,
}  # fmt: skip


def reason_of(nodeid: str) -> str:
    """Returns the reason for which a test is not run, or nothing."""
    name = nodeid.removeprefix("tests/")
    patterns = {beginning.replace("[", "[[]") + "*": reason for beginning, reason in EXCEPTIONS.items()}
    return next((reason for pattern, reason in patterns.items() if fnmatchcase(name, pattern)), "")
