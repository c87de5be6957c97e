import json

import pytest
import torch
from conftest import GOLDEN, golden_draft
from safetensors.torch import load_file
from transformers import DynamicCache

from eagle_hf.training import feature_regression_loss


def parts_of(target):
    return {"embed_tokens": target.get_input_embeddings(), "lm_head": target.get_output_embeddings()}


def test_losses_and_gradients_are_the_references(golden_target):
    tensors = load_file(GOLDEN / "train" / "A_eagle1_loss.safetensors")
    expected = json.loads((GOLDEN / "train" / "A_eagle1_loss.json").read_text())
    draft = golden_draft("A_eagle1")
    result = feature_regression_loss(
        draft,
        tensors["features"],
        tensors["input_ids_raw"].long(),
        tensors["loss_mask"],
        attention_mask=tensors["attention_mask"],
        **parts_of(golden_target),
    )
    assert result.feature_losses.item() == pytest.approx(expected["vloss"], abs=1e-6)
    assert result.step_losses.item() == pytest.approx(expected["ploss"], abs=1e-6)
    assert result.loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    real = tensors["attention_mask"].bool()[..., None]
    assert ((result.last_hidden_states[0] - tensors["predict"]) * real).abs().max() < 1e-5
    result.loss.backward()
    relative = (draft.fc.weight.grad - tensors["grad.fc.weight"]).norm() / tensors["grad.fc.weight"].norm()
    assert relative < 1e-5
    for name, norm in expected["grad_norms"].items():
        assert draft.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=1e-4)


def test_harmonised_steps_are_what_drafting_computes(golden_target):
    """Unroll `i` at row `p` is the draft step that follows `i` guesses after the true feature of position `p`."""
    draft = golden_draft("A_eagle1")
    ids = torch.randint(3, 320, (1, 10), generator=torch.Generator().manual_seed(0))
    embed = golden_target.get_input_embeddings()
    with torch.no_grad():
        features = golden_target(ids, output_hidden_states=True).hidden_states[-1]
        result = feature_regression_loss(
            draft, features, ids, torch.ones_like(ids), num_steps=3, **parts_of(golden_target)
        )
        for p in (2, 5):
            cache, hidden, tokens = DynamicCache(), features[:, : p + 1], ids[:, 1 : p + 2]
            for step in range(3):
                output = draft(hidden, embed(tokens), cache=cache).last_hidden_state
                torch.testing.assert_close(result.last_hidden_states[step][:, p], output[:, -1], atol=1e-5, rtol=1e-5)
                hidden, tokens = output[:, -1:], ids[:, p + 2 + step : p + 3 + step]


def test_every_unroll_learns_its_own_feature_and_token(golden_target):
    """A drafter that returned the true features would have no loss on features, at any unroll."""
    draft = golden_draft("A_eagle1")
    ids = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = golden_target(ids, output_hidden_states=True).hidden_states[-1]
    calls = []

    def true_step(hidden_states, *args, **kwargs):
        calls.append(1)
        return torch.nn.functional.pad(features[:, len(calls) :], (0, 0, 0, len(calls)))

    draft.step = true_step
    result = feature_regression_loss(draft, features, ids, torch.ones_like(ids), num_steps=3, **parts_of(golden_target))
    assert result.feature_losses.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(result.step_accuracies, torch.ones(3))
    assert result.accepted.tolist() == result.drafted.tolist() == [16, 14, 12]


def test_noise_is_added_to_what_the_head_reads_and_not_to_what_it_learns(golden_target):
    draft = golden_draft("A_eagle1")
    ids = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = golden_target(ids, output_hidden_states=True).hidden_states[-1]
    read = []
    draft.project_features = lambda inputs: read.append(inputs) or inputs
    before = features.clone()
    feature_regression_loss(draft, features, ids, torch.ones_like(ids), feature_noise=0.1, **parts_of(golden_target))
    noise = read[0] - features
    assert noise.abs().max() <= 0.1 + 1e-6
    assert noise.abs().mean() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(features, before)
