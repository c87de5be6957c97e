"""
A head is made for every decoder for which drafts are verified, learns from it, and drafts for it without changing its
text. `make architectures` tries all, the default suite those whose configurations say things in a way of their own.
"""

import pytest
import torch
from architecture_verdicts import PROMPTS, REFUSED, SEVERAL_STREAMS, verdict
from every_decoder import decoder_or_skip, model_types

from eagle_hf.training import EagleTrainer, EagleTrainingArguments, PaddingCollator, new_head


OWN_WAYS = ["bloom", "codegen", "cohere2_moe", "gemma4_text", "longcat_flash", "mpt"]


def trains_and_drafts(target, tmp_path, eagle_version):
    fields = {"feature_layer_ids": [0, 1, 2]} if eagle_version == 3 else {}
    head = new_head(target, eagle_version=eagle_version, **fields)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    truth = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    dataset = [
        {"input_ids": torch.randint(3, 90, (length,), generator=generator).tolist(), "loss_mask": [1] * length}
        for length in (9, 12)
    ]
    arguments = EagleTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", num_unrolls=2, max_steps=1,
        disable_tqdm=True, per_device_train_batch_size=2, learning_rate=1e-2,
    )  # fmt: skip
    EagleTrainer(head, target, arguments, train_dataset=dataset, data_collator=PaddingCollator(0)).train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())
    assert all(torch.equal(tensor, truth[name]) for name, tensor in target.state_dict().items())
    head.eval().generation_config.draft_tree = "dynamic"
    prompt = PROMPTS["input_ids"][:1]
    call = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(target.generate(prompt, **call), target.generate(prompt, assistant_model=head, **call))


@pytest.mark.parametrize("eagle_version", [1, 3])
@pytest.mark.parametrize("model_type", OWN_WAYS)
def test_heads_are_made_trained_and_used(model_type, eagle_version, tmp_path):
    trains_and_drafts(decoder_or_skip(model_type), tmp_path, eagle_version)


def test_a_target_of_several_streams_trains_heads_of_its_last_hidden_state(tmp_path):
    """Gemma 3n: its MLP has a size per layer, and all hidden states between its layers are several streams."""
    target = decoder_or_skip("gemma3n_text")
    assert new_head(target, eagle_version=1).config.intermediate_size == 48
    trains_and_drafts(target, tmp_path, eagle_version=1)
    with pytest.raises(ValueError, match=r"keeps several streams there, .* `feature_layer_ids=\[-1\]`"):
        trains_and_drafts(target, tmp_path, eagle_version=3)


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", list(model_types()))
def test_heads_are_made_trained_and_used_for_every_decoder(model_type, tmp_path):
    target = decoder_or_skip(model_type)
    if verdict(target)[0] == REFUSED:
        pytest.skip("refused")
    trains_and_drafts(target, tmp_path, eagle_version=1 if model_type in SEVERAL_STREAMS else 3)
