import json
from collections import Counter

import torch
from conftest import GOLDEN, golden_draft

from eagle_hf.training import most_frequent_tokens


def test_the_draft_vocabulary_is_the_references():
    expected = json.loads((GOLDEN / "train" / "vocab_map.json").read_text())
    trained = [
        token
        for ids, mask in zip(expected["input_ids"], expected["loss_mask"], strict=True)
        for token, m in zip(ids, mask, strict=True)
        if m
    ]
    chosen = most_frequent_tokens(Counter(trained), expected["N"])
    assert chosen.tolist() == expected["used"]
    assert (chosen - torch.arange(expected["N"])).tolist() == expected["d2t"]


def test_among_equals_those_counted_first_win():
    assert most_frequent_tokens({9: 2, 4: 5, 7: 2, 3: 2}, 3).tolist() == [4, 7, 9]


def test_too_few_tokens_are_filled_up():
    assert most_frequent_tokens({3: 1}, 4).tolist() == [0, 1, 2, 3]


def test_the_head_takes_it():
    draft = golden_draft("A_eagle3")
    chosen = most_frequent_tokens(Counter(range(100, 200)), 80)
    draft.set_draft_vocabulary(chosen)
    assert torch.equal(draft.draft_to_target_ids, chosen)
