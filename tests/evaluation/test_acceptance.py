"""tau, n-alpha and calibration against cases that can be counted by hand."""

import random

import pytest
import torch

from eagle_hf import DraftTree
from eagle_hf.evaluation.acceptance import (
    NUM_BINS,
    calibration,
    chain_trials,
    confidence_bins,
    n_alpha,
    summarize_lengths,
)


def tree(parents, probs):
    """A tree of batch size 1 whose nodes have these probabilities after their parents."""
    scores, depths = [0.0], [0]
    for parent, prob in zip(parents, probs, strict=True):
        scores.append(scores[parent] + torch.tensor(prob).log().item())
        depths.append(depths[parent] + 1)
    count = len(scores)
    return DraftTree(
        torch.arange(count)[None],
        torch.tensor([[-1, *parents]]),
        torch.tensor([depths]),
        torch.tensor([scores]),
        max(depths),
    )


def chain(length, prob=0.5):
    return tree(list(range(length)), [prob] * length)


def test_tau_is_averaged_over_verifications_and_over_prompts():
    summary = summarize_lengths([[4, 2, 1], [3], []])
    assert summary["tau"] == 2.5  # 10 tokens of 4 verifications
    assert summary["tau_mean_over_prompts"] == pytest.approx((7 / 3 + 3) / 2, abs=1e-4)
    assert summary["verifications"] == 4
    assert summary["accepted_at_depth"] == [0.75, 0.5, 0.25]
    assert summary["lengths"] == {"1": 1, "2": 1, "3": 1, "4": 1}


def test_texts_without_a_verification_have_no_tau():
    assert summarize_lengths([[], []])["tau"] is None


def test_n_alpha_counts_chains_that_got_so_far():
    steps = [(chain(3), [[0, 1, 2, 3]]), (chain(3), [[0, 1]]), (chain(3), [[0]]), (chain(3), [[0, 1, 2, 3]])]
    trials = chain_trials(steps, depth=3)  # the last step ended the text
    assert trials == [[3, 2], [2, 1], [1, 1]]
    assert n_alpha([trials, trials]) == [
        {"n": 0, "trials": 6, "alpha": 0.6667},
        {"n": 1, "trials": 4, "alpha": 0.5},
        {"n": 2, "trials": 2, "alpha": 1.0},
    ]


def test_a_shorter_chain_is_no_trial_of_what_it_did_not_offer():
    steps = [(chain(1), [[0, 1]]), (chain(3), [[0]])]
    assert chain_trials(steps, depth=3) == [[1, 1], [0, 0], [0, 0]]
    assert [row["n"] for row in n_alpha([chain_trials(steps, depth=3)])] == [0]


def test_confidence_counts_the_children_of_accepted_nodes_only():
    #  0 ─┬─ 1 (0.65) ─── 3 (0.95)      accepted: 0, 1; so 1, 2 and 3 are decided, 4 is not
    #     └─ 2 (0.25) ─── 4 (0.85)
    step = (tree([0, 0, 1, 2], [0.65, 0.25, 0.95, 0.85]), [[0, 1]])
    bins = confidence_bins([step, step])
    assert [tokens for tokens, _, _ in bins] == [0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    assert [accepted for _, _, accepted in bins] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    result = calibration([bins, bins])
    assert result["tokens"] == 6
    assert result["bins"][1] == {"from": 0.6, "tokens": 2, "confidence": 0.65, "acceptance": 1.0}
    assert result["calibration_error"] == pytest.approx((0.25 + 0.35 + 0.95) / 3, abs=1e-4)


def test_impossible_nodes_are_left_out():
    assert sum(row[0] for row in confidence_bins([(tree([0], [0.0]), [[0]])] * 2)) == 0
    assert calibration([[[0, 0.0, 0] for _ in range(NUM_BINS)]])["calibration_error"] is None


@pytest.mark.parametrize(("power", "is_calibrated"), [(1, True), (3, False)])
def test_a_head_whose_confidence_is_right_is_called_calibrated(power, is_calibrated):
    generator = random.Random(0)
    steps = []
    for _ in range(3000):
        prob = generator.random()
        accepted = generator.random() < prob**power  # accepted as often as it says, or less often
        steps.append((tree([0], [prob]), [[0, 1] if accepted else [0]]))
    error = calibration([confidence_bins(steps)])["calibration_error"]
    assert (error < 0.03) == is_calibrated
