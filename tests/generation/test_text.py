"""Padding of -1, which configurations of old say where there is none: it can be written, and is never embedded."""

import pytest
import torch
from architecture_verdicts import fitting_draft
from conftest import use_options
from doubles import ScriptedDrafter, random_draft, scripted
from every_decoder import tiny_decoder
from promises import PROMPT_LENGTHS, left_padded_prompts, target_of
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList
from transformers.utils import logging

from eagle_hf.generation.text import Text


@pytest.fixture(autouse=True)
def quiet():
    """`generate` warns of such padding, with and without a draft."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt2-learned-positions"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_batches_with_padding_of_minus_one(monkeypatch, name, do_sample):
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS)
    kwargs = {"pad_token_id": -1, "eos_token_id": None, "max_new_tokens": 16, "do_sample": do_sample}
    torch.manual_seed(0)
    plain = target.generate(**inputs, **kwargs)
    head = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    torch.manual_seed(0)
    assert torch.equal(target.generate(**inputs, **kwargs, assistant_model=head), plain)
    truth = plain[:, inputs["input_ids"].shape[1] :].tolist()
    scripted(monkeypatch, lambda: ScriptedDrafter(truth, seed=1))
    torch.manual_seed(0)
    assert torch.equal(target.generate(**inputs, **kwargs, assistant_model=head), plain)


def test_a_recurrent_target_whose_rows_end_before_the_others():
    """Plain `generate` fails here, as it embeds the padding."""
    target, inputs = tiny_decoder("qwen3_next"), left_padded_prompts((9, 9))
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    text = target.generate(**inputs, **kwargs, eos_token_id=None)
    eos = next(token for token in text[0, 12:].tolist() if token not in text[1, 9:].tolist())
    expected = target.generate(**inputs, **kwargs, eos_token_id=eos, pad_token_id=0)
    with pytest.raises(IndexError):
        target.generate(**inputs, **kwargs, eos_token_id=eos, pad_token_id=-1)
    ours = target.generate(**inputs, **kwargs, eos_token_id=eos, pad_token_id=-1, assistant_model=fitting_draft(target))
    assert torch.equal(ours.clamp(min=0), expected)


def test_what_is_read_again_can_be_embedded():
    config = target_of("llama").generation_config.__class__(pad_token_id=-1)
    config._pad_token_tensor = torch.tensor(-1)
    criteria = StoppingCriteriaList([MaxLengthCriteria(9)])
    sequences = Text(torch.tensor([[3, 4], [5, 6]]), criteria, config, None)
    sequences.append_rows([[7, 8, 9], [10]])
    assert sequences.ids.min() == -1
    assert sequences.last(3, [3, 1]).tolist() == [[7, 8, 9], [10, 0, 0]]
    assert sequences.newest().tolist() == [9, 10]
