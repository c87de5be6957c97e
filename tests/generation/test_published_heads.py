"""Heads of every layout draft for a target, and its text stays what it was."""

import pytest
import torch
from conftest import use_options
from layouts import SAMPLES, tiny_llama

from eagle_hf import EagleDraftModel


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()))
def test_text_is_that_of_plain_generate(name, do_sample):
    draft = EagleDraftModel.from_pretrained(SAMPLES / name)
    use_options(draft, num_assistant_tokens=12, draft_depth=4, draft_width=3)
    target = tiny_llama(draft.config.target_hidden_size)
    prompt = torch.tensor([[17, 204, 51, 130, 9], [0, 0, 33, 8, 250]])
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 20, "do_sample": do_sample}
    texts = []
    for assistant in (None, draft):
        torch.manual_seed(0)
        texts.append(target.generate(prompt, assistant_model=assistant, **options))
    assert torch.equal(texts[0], texts[1])
