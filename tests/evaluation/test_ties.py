"""Where texts part: only rounding is forgiven."""

import pytest
import torch
from architectures import tiny_target

from eagle_hf.evaluation.ties import first_difference, is_near_tie


@pytest.mark.parametrize(
    ("tokens", "others", "place"),
    [([1, 2], [1, 2], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [1], 0)],
)
def test_the_first_difference_is_found(tokens, others, place):
    assert first_difference(tokens, others) == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scores_are_a_tie_and_others_are_not(dtype):
    target = tiny_target("llama").to(dtype)
    prompt = torch.tensor([[5, 6, 7, 8]])
    best, second = target(prompt).logits[0, -1].topk(2).indices.tolist()
    assert not is_near_tie(target, prompt, [best], [second], 0)
    target.lm_head.weight.data[second] = target.lm_head.weight.data[best]
    assert is_near_tie(target, prompt, [best], [second], 0)
    target.lm_head.weight.data[second] *= 1 - 2 * torch.finfo(dtype).eps
    assert is_near_tie(target, prompt, [best], [second], 0)


def test_a_text_that_goes_on_where_the_other_ends_is_no_tie():
    assert not is_near_tie(tiny_target("llama"), torch.tensor([[5]]), [3, 4], [3], 1)
