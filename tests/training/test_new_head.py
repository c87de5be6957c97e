import pytest
import torch
from architectures import tiny_target

from eagle_hf.training import new_head


@pytest.mark.parametrize("eagle_version", [1, 3])
@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma2-softcap", "gpt2-learned-positions", "deepseek-v2-mla"])
def test_a_new_head_fits_its_target(name, eagle_version):
    target = tiny_target(name)
    fields = {"feature_layer_ids": [0, 1, 2]} if eagle_version == 3 else {}
    head = new_head(target, eagle_version=eagle_version, **fields).eval()
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(target.generate(prompt, **settings), target.generate(prompt, assistant_model=head, **settings))


def test_its_output_layer_starts_as_the_targets_rows():
    target = tiny_target("llama")
    vocabulary = torch.arange(1, 96, 2)
    head = new_head(target, vocabulary, feature_layer_ids=[0, 1, 2])
    assert torch.equal(head.lm_head.weight, target.lm_head.weight[vocabulary])
    assert torch.equal(head.draft_to_target_ids, vocabulary)
    assert head.lm_head.weight.data_ptr() != target.lm_head.weight.data_ptr()


def test_the_feature_layers_are_written_into_the_configuration(golden_target):
    assert new_head(golden_target).config.feature_layer_ids == [2, 3, 4]
    assert new_head(golden_target, eagle_version=1).config.feature_layer_ids == [-1]


def test_a_target_with_too_few_layers_is_refused():
    target = tiny_target("llama")
    target.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match="not three different layers"):
        new_head(target)
