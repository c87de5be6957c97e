"""AngelSlim's layout."""

from layouts import FLAT, check_golden, check_reference, dense_head, rename, write_head

from eagle_hf import EagleDraftModel


CONFIG = FLAT | {"architectures": ["Eagle3LlamaForCausalLM"], "target_model_type": "qwen3"}


def test_the_sample_computes_what_angelslim_computes():
    config = check_golden("angelslim-eagle3", bfloat16_embeds=True).config
    assert config.resolve_feature_layer_ids(8) == [2, 4, 5]


def test_rotary_embeddings_of_vision_language_heads_are_ordinary_ones_for_text(tmp_path):
    for rope in (
        {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
    ):
        weights = dense_head()
        config = CONFIG | {"modal_type": "VLM"} | rope
        draft = EagleDraftModel.from_pretrained(write_head(tmp_path, config, rename(weights, "layers.0.", "midlayer.")))
        assert draft.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
        check_reference(draft, weights)
