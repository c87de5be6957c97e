"""Hidden states and attentions have the nesting, the shapes and the values that plain `generate` returns."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_target
from doubles import random_draft
from promises import NEW_TOKENS, PROMPT_LENGTHS, an_eos_token, left_padded_prompts, with_and_without_draft

from eagle_hf.target.layer_outputs import KeyLayout
from eagle_hf.versions import CACHE, cache_of


WANTED = {"output_hidden_states": True, "output_attentions": True, "do_sample": False}
LENGTHS = pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])


def eager_target(name):
    target = tiny_target(name)
    if name.startswith("falcon"):  # chooses its attention when it is made
        eager = type(target)._from_config(target.config, attn_implementation="eager").eval()
        eager.load_state_dict(target.state_dict())
        return eager
    target.set_attn_implementation("eager")
    return target


def assert_same_entries(plain, ours, is_open):
    """
    Equal nesting and shapes; equal values in rows that had not finished. `is_open` of shape `(batch_size, new_tokens)`:
    whether plain `generate` ran a real token of the row to get this entry.
    """
    assert type(ours) is type(plain) is tuple
    assert len(ours) == len(plain)
    for column, (expected_layers, layers) in enumerate(zip(plain, ours, strict=True)):
        assert type(layers) is type(expected_layers) is tuple
        for expected, got in zip(expected_layers, layers, strict=True):
            assert got.shape == expected.shape
            assert got.dtype == expected.dtype
            rows = is_open[:, column]
            torch.testing.assert_close(got[rows], expected[rows], atol=5e-4, rtol=1e-3)


def open_entries(output, prompt_len, pad_token=0):
    """An entry is real if the token before it is; the first one comes from the prompt."""
    new = output.sequences[:, prompt_len:]
    return torch.cat([torch.ones(len(new), 1), (new != pad_token)[:, :-1]], dim=1).bool()


@LENGTHS
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(monkeypatch, name, lengths):
    target, inputs = eager_target(name), left_padded_prompts(lengths)
    eos = an_eos_token(target, inputs, do_sample=False)
    plain, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, eos_token_id=eos, **WANTED)
    assert torch.equal(plain.sequences, ours.sequences)
    is_open = open_entries(plain, inputs["input_ids"].shape[1])
    assert is_open[:, -1].any()
    assert_same_entries(plain.hidden_states, ours.hidden_states, is_open)
    assert_same_entries(plain.attentions, ours.attentions, is_open)
    assert all(plain.attentions)  # there is something to compare


@LENGTHS
@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
def test_token_by_token(monkeypatch, name, lengths):
    """Rows advance together here."""
    target, inputs = eager_target(name), left_padded_prompts(lengths)
    eos = an_eos_token(target, inputs, do_sample=False, repetition_penalty=1.2)
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=eos, repetition_penalty=1.2, **WANTED
    )
    is_open = open_entries(plain, inputs["input_ids"].shape[1])
    assert_same_entries(plain.hidden_states, ours.hidden_states, is_open)
    assert_same_entries(plain.attentions, ours.attentions, is_open)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "cohere2-mixed"])
def test_with_a_real_head(name):
    target, inputs = eager_target(name), left_padded_prompts(PROMPT_LENGTHS)
    kwargs = WANTED | {"max_new_tokens": 12, "eos_token_id": None, "return_dict_in_generate": True}
    plain = target.generate(**inputs, **kwargs)
    ours = target.generate(**inputs, **kwargs, assistant_model=random_draft(target))
    is_open = torch.ones(len(PROMPT_LENGTHS), 12, dtype=torch.bool)
    assert_same_entries(plain.hidden_states, ours.hidden_states, is_open)
    assert_same_entries(plain.attentions, ours.attentions, is_open)


def test_implementations_without_attentions_return_what_plain_generate_returns(monkeypatch):
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS)
    plain, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, eos_token_id=None, **WANTED)
    assert plain.attentions == ours.attentions == ((),) * NEW_TOKENS


def test_what_is_not_asked_for_is_none(monkeypatch):
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    for name, other in (("hidden_states", "attentions"), ("attentions", "hidden_states")):
        _, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, do_sample=False, **{f"output_{name}": True})
        assert getattr(ours, name) is not None
        assert getattr(ours, other) is None
    target.generate(
        **inputs, **WANTED, max_new_tokens=4, assistant_model=random_draft(target)
    )  # a plain tensor: ignored


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(monkeypatch, dtype):
    target, inputs = tiny_target("qwen2-mixed", dtype=dtype), left_padded_prompts(PROMPT_LENGTHS[:1])
    target.set_attn_implementation("eager")
    plain, ours, *_ = with_and_without_draft(monkeypatch, target, inputs, eos_token_id=None, **WANTED)
    for name in ("hidden_states", "attentions"):
        kinds = {tensor.dtype for entry in getattr(ours, name) for tensor in entry}
        assert kinds == {tensor.dtype for entry in getattr(plain, name) for tensor in entry}


def test_with_a_second_turn_the_first_entry_covers_the_new_tokens():
    target, inputs = eager_target("gemma3-mixed"), left_padded_prompts(PROMPT_LENGTHS)
    kwargs = WANTED | {"max_new_tokens": 9, "eos_token_id": None, "return_dict_in_generate": True}
    outputs = []
    for draft in (None, random_draft(target)):
        first = target.generate(**inputs, **kwargs, assistant_model=draft)
        ids = torch.cat([first.sequences, first.sequences[:, -5:]], dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 14), value=1)
        outputs.append(
            target.generate(ids, attention_mask=mask, **{CACHE: cache_of(first)}, **kwargs, assistant_model=draft)
        )
    assert outputs[1].hidden_states[0][0].shape[1] == 6
    is_open = torch.ones(len(PROMPT_LENGTHS), 9, dtype=torch.bool)
    assert_same_entries(outputs[0].hidden_states, outputs[1].hidden_states, is_open)
    assert_same_entries(outputs[0].attentions, outputs[1].attentions, is_open)


def test_a_static_cache_has_attentions_of_one_width(monkeypatch):
    """Without padding, whose queries look at nothing and share their weight among all columns, also those to spare."""
    target, inputs = eager_target("llama"), left_padded_prompts((9, 9, 9))
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=None, cache_implementation="static", **WANTED
    )
    is_open = torch.ones(3, NEW_TOKENS, dtype=torch.bool)
    assert {weights.shape[-1] for entry in plain.attentions for weights in entry} == {9 + NEW_TOKENS - 1}
    assert_same_entries(plain.attentions, ours.attentions, is_open)


class TestKeyLayout:
    """Two rows with 5 and 3 committed columns; the tree's nodes follow the slots of the longest row."""

    def test_full_attention(self):
        layout = KeyLayout(window=None, num_slots=0)
        assert layout.plain_keys([5, 3], 0, [0, 2]) == [0, 1, 2, 3, 4, 5, 7]
        assert layout.plain_keys([5, 3], 1, [0, 2]) == [0, 1, 2, 5, 7]

    def test_a_window_that_is_full(self):
        layout = KeyLayout(window=4, num_slots=3)  # slots hold the last three columns of each row
        assert layout.plain_keys([5, 3], 0, [0]) == [0, 1, 2, 3]
        assert layout.plain_keys([5, 3], 1, [0, 1, 3]) == [2, 3, 4, 6]

    def test_a_window_that_is_not(self):
        layout = KeyLayout(window=8, num_slots=5)
        assert layout.plain_keys([5, 3], 0, [0]) == [0, 1, 2, 3, 4, 5]
        assert layout.plain_keys([5, 3], 1, [0]) == [2, 3, 4, 5]  # right-aligned: two slots hold nothing
