import json

import pytest
import torch
from conftest import GOLDEN, golden_draft
from safetensors.torch import load_file

from eagle_hf import EagleConfig, EagleDraftModel
from eagle_hf.training import training_time_test_loss


@pytest.fixture(scope="module")
def golden(golden_target):
    tensors = load_file(GOLDEN / "train" / "A_eagle3_ttt.safetensors")
    expected = json.loads((GOLDEN / "train" / "A_eagle3_ttt.json").read_text())
    ids, mask = tensors["input_ids"].long(), tensors["attention_mask"]
    with torch.no_grad():
        outputs = golden_target(ids, attention_mask=mask, output_hidden_states=True)
    features = torch.cat([outputs.hidden_states[i] for i in (2, 3, 4)], dim=-1)
    return tensors, expected, (features, ids, outputs.logits, tensors["loss_mask"]), mask


def run(draft, inputs, mask, golden_target, **kwargs):
    return training_time_test_loss(draft, *inputs, golden_target.get_input_embeddings(), attention_mask=mask, **kwargs)


def test_losses_accuracies_and_gradients_are_the_references(golden, golden_target):
    tensors, expected, inputs, mask = golden
    draft = golden_draft("A_eagle3")
    result = run(draft, inputs, mask, golden_target)
    torch.testing.assert_close(result.step_losses, tensors["plosses"], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.loss[None], tensors["total_loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.step_accuracies, torch.tensor(expected["acces"]), atol=1e-6, rtol=0)
    real = mask.bool()[..., None]
    for step, hidden in zip((0, 1, 6), tensors["unroll_hidden_0_1_6"], strict=True):
        assert ((result.last_hidden_states[step] - hidden) * real).abs().max() < 1e-5
    result.loss.backward()
    # The gradient flows through features at padded places as well, which the reference masks differently.
    relative = (draft.fc.weight.grad - tensors["grad.fc.weight"]).norm() / tensors["grad.fc.weight"].norm()
    assert relative < 1e-5
    for name, norm in expected["grad_norms"].items():
        gradient = draft.get_parameter(name.replace("midlayer", "layers.0")).grad
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4)


def test_unrolled_rows_are_what_drafting_computes(golden_target):
    """Unroll `i` at row `p` is the draft step that follows `i` guesses after the true feature of position `p`."""
    draft = golden_draft("A_eagle3")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 320, (1, 10), generator=generator)
    embed = golden_target.get_input_embeddings()
    with torch.no_grad():
        outputs = golden_target(ids, output_hidden_states=True)
        features = torch.cat([outputs.hidden_states[i] for i in (2, 3, 4)], dim=-1)
        result = training_time_test_loss(draft, features, ids, outputs.logits, torch.ones_like(ids), embed, num_steps=4)
        for p in (2, 5):
            hidden = draft.project_features(features[:, : p + 1])
            tokens = ids[:, 1 : p + 2]
            from transformers import DynamicCache

            cache = DynamicCache()
            for step in range(4):
                output = draft(hidden, embed(tokens), cache=cache)
                expected = output.last_hidden_state[:, -1]
                torch.testing.assert_close(result.last_hidden_states[step][:, p], expected, atol=1e-5, rtol=1e-5)
                hidden, tokens = output.last_hidden_state[:, -1:], ids[:, p + 2 + step : p + 3 + step]


def test_padding_does_not_matter(golden_target):
    draft = golden_draft("A_eagle3")
    ids = torch.randint(3, 320, (1, 9), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(ids, (0, 4))
    losses = []
    for text, mask in ((ids, None), (padded, (padded != 0).long())):
        with torch.no_grad():
            outputs = golden_target(text, attention_mask=mask, output_hidden_states=True)
            features = torch.cat([outputs.hidden_states[i] for i in (2, 3, 4)], dim=-1)
        trained = torch.zeros_like(text)
        trained[:, 2:7] = 1  # the last rows are trained against padding: a quirk of the reference
        result = training_time_test_loss(
            draft, features, text, outputs.logits, trained, golden_target.get_input_embeddings(),
            attention_mask=mask, num_steps=2,
        )  # fmt: skip
        losses.append(result.step_losses * text.shape[1])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_hidden_layers": 2},
        {"norm_output": True, "fc_norm": True},
        {"draft_vocab_size": 320},
        {"qk_norm": True},
    ],
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_every_parameter_learns(golden_target, fields):
    settings = {
        "vocab_size": 320, "draft_vocab_size": 80, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    } | fields  # fmt: skip
    torch.manual_seed(0)
    draft = EagleDraftModel(EagleConfig(**settings))
    ids = torch.randint(3, 80, (2, 12))
    with torch.no_grad():
        outputs = golden_target(ids, output_hidden_states=True)
        features = torch.cat([outputs.hidden_states[i] for i in (2, 3, 4)], dim=-1)
    result = training_time_test_loss(
        draft, features, ids, outputs.logits, torch.ones_like(ids), golden_target.get_input_embeddings(), num_steps=3
    )
    result.loss.backward()
    for name, parameter in draft.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
