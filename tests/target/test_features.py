"""Reading features from a target, above all those that `transformers` does not return."""

import threading

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB_SIZE, tiny_target
from doubles import random_draft
from layouts import tiny_llama

from eagle_hf import EagleConfig
from eagle_hf.target.features import FeatureReader, join_steps, last_decoder_layer


IDS = torch.tensor([[5, 9, 33, 2, 7, 41]])


def config(target, ids):
    text = target.config.get_text_config(decoder=True)
    return EagleConfig(
        vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=64, num_attention_heads=4,
        draft_vocab_size=text.vocab_size, feature_layer_ids=ids,
    )  # fmt: skip


@torch.no_grad()
def read(target, ids):
    reader = FeatureReader(target, config(target, ids))
    with reader:
        outputs = target(IDS, output_hidden_states=reader.output_hidden_states)
    return reader.states(outputs.hidden_states)


@torch.no_grad()
def final_norm_of(target, state):
    return target.get_decoder().norm(state)


@pytest.mark.parametrize("ids", [[8], [2, 8], [8, 2, 5], [4, 6, 8], [0, 1, 2]])
def test_the_last_layers_output_is_read_before_the_final_norm(ids):
    target = tiny_llama()
    with torch.no_grad():
        expected = list(target(IDS, output_hidden_states=True).hidden_states)
        captured = []
        hook = target.model.norm.register_forward_pre_hook(lambda module, args: captured.append(args[0]))
        target(IDS)
        hook.remove()
    expected[8] = captured[0]
    states = read(target, ids)
    assert len(states) == len(ids)
    assert all(torch.equal(state, expected[i]) for state, i in zip(states, ids, strict=True))


def test_minus_one_is_after_the_final_norm():
    target = tiny_llama()
    (before,), (after,) = read(target, [8]), read(target, [-1])
    assert not torch.allclose(before, after)
    assert torch.equal(final_norm_of(target, before), after)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_last_layer(name):
    target = tiny_target(name)
    states = read(target, [1, 3])
    assert states[0].shape == states[1].shape
    expected = []
    layer = last_decoder_layer(target, 3)
    with torch.no_grad():
        hook = layer.register_forward_hook(lambda module, args, output: expected.append(output))
        hidden = target(IDS % VOCAB_SIZE, output_hidden_states=True).hidden_states
        hook.remove()
    output = expected[0][0] if isinstance(expected[0], tuple) else expected[0]
    assert torch.equal(states[1], output)
    assert torch.equal(states[0], hidden[1])


def test_nothing_is_left_behind_on_the_target():
    target = tiny_llama()
    read(target, [8])
    assert not target.model.layers[-1]._forward_hooks or all(
        "keep_output" not in hook.__qualname__ for hook in target.model.layers[-1]._forward_hooks.values()
    )


def test_other_threads_do_not_disturb():
    target = tiny_llama()
    expected = read(target, [8])[0]
    reader = FeatureReader(target, config(target, [8]))
    with reader, torch.no_grad():
        target(IDS, output_hidden_states=reader.output_hidden_states)
        other = threading.Thread(target=lambda: target(IDS + 1))
        other.start()
        other.join()
    assert torch.equal(reader.states(None)[0], expected)


def test_a_target_without_a_list_of_layers_is_refused():
    with pytest.raises(ValueError, match="no list of 99 decoder layers"):
        last_decoder_layer(tiny_llama(), 99)


@pytest.mark.parametrize("batch", [1, 2])
def test_drafts_that_read_the_last_boundary_change_nothing(batch):
    target = tiny_llama()
    draft = random_draft(target, feature_layer_ids=[4, 6, 8], norm_before_fc=True)
    prompt = torch.tensor([[17, 204, 51, 130, 9], [0, 0, 33, 8, 250]])[:batch]
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 20, "do_sample": False}
    plain, eagle = (target.generate(prompt, assistant_model=assistant, **options) for assistant in (None, draft))
    assert torch.equal(plain, eagle)


def test_a_chunked_prefill_is_read_like_any_other():
    target = tiny_llama()
    prompt = torch.arange(3, 20)[None]
    draft = random_draft(target, feature_layer_ids=[4, 6, 8])
    options = {"max_new_tokens": 10, "do_sample": False, "prefill_chunk_size": 5}
    plain, eagle = (target.generate(prompt, assistant_model=assistant, **options) for assistant in (None, draft))
    assert torch.equal(plain, eagle)


def test_joined_steps_are_what_one_step_would_have_brought():
    """Every row has its own tokens first; columns behind them do not count."""
    steps = [
        (torch.tensor([[[1.0], [2.0]], [[3.0], [99.0]]]), torch.tensor([[1, 2], [3, 99]]), [2, 1]),
        (torch.tensor([[[99.0]], [[4.0]]]), torch.tensor([[99], [4]]), [0, 1]),
        (torch.tensor([[[5.0]], [[6.0]]]), torch.tensor([[5], [6]]), [1, 1]),
    ]
    features, tokens, counts = join_steps(steps)
    assert counts == [3, 3]
    assert tokens.tolist() == [[1, 2, 5], [3, 4, 6]]
    assert features[..., 0].tolist() == tokens.tolist()
    features, tokens, counts = join_steps([(f[:1], t[:1], c[:1]) for f, t, c in steps[::2]])
    assert (tokens.tolist(), counts) == ([[1, 2, 5]], [3])
    assert features[..., 0].tolist() == tokens.tolist()
