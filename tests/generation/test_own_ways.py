"""
Targets with ways of their own: a cache layer that only they have, images that they read in every step, a loop that
writes several tokens per step. Each is exact or refused by name.
"""

import pytest
import torch
from architectures import VOCAB_SIZE, tiny_target
from doubles import ScriptedChainDrafter, random_draft, scripted
from multimodal_targets import IMAGE, VISION_END, VISION_START
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CsmConfig,
    CsmForConditionalGeneration,
    IdeficsConfig,
    LlamaForCausalLM,
)

import eagle_hf
from eagle_hf.cache.layers import goes_back_alone
from eagle_hf.target.probe import can_verify_trees
from eagle_hf.versions import cache_of


TEXT = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
IDS = torch.tensor([[5, 6, 7, VISION_START, *[IMAGE] * 4, VISION_END, 11, 12, 13, 14, 15]])
OPTIONS = {"max_new_tokens": 16, "eos_token_id": None}


def seeded(make, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(config).eval()


def minimax_m3():
    text = TEXT | {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2, "index_n_heads": 2, "index_head_dim": 8,
        "index_block_size": 4, "index_topk_blocks": 2, "mlp_layer_types": ["dense", *["sparse"] * 3], "rotary_dim": 8,
        "num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 48, "shared_intermediate_size": 24,
    }  # fmt: skip
    vision = ATTENTION | {"hidden_size": 32, "image_size": 16, "patch_size": 4, "initializer_range": 0.2}
    more = {"image_token_index": IMAGE, "projector_hidden_size": 32}
    config = AutoConfig.for_model("minimax_m3_vl", text_config=text, vision_config=vision, **more)
    return seeded(AutoModelForImageTextToText.from_config, config)


def idefics():
    vision = ATTENTION | {"embed_dim": 32, "image_size": 8, "patch_size": 4}
    config = IdeficsConfig(**TEXT, additional_vocab_size=0, cross_layer_interval=2, vision_config=vision)
    return seeded(AutoModelForImageTextToText.from_config, config)


def csm():
    depth = TEXT | ATTENTION | {"num_codebooks": 4, "backbone_hidden_size": 32}
    codec = {
        "model_type": "mimi", "num_filters": 4, "hidden_size": 16, "codebook_dim": 8, "num_hidden_layers": 1,
        "vector_quantization_hidden_dimension": 8, "upsample_groups": 16, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 2, "codebook_size": 16, "num_quantizers": 4, "intermediate_size": 16,
    }  # fmt: skip
    tokens = {"codebook_pad_token_id": 0, "codebook_eos_token_id": 2, "audio_token_id": 90, "audio_eos_token_id": 91}
    config = CsmConfig(
        **TEXT, **tokens, num_codebooks=4, text_vocab_size=VOCAB_SIZE, depth_decoder_config=depth, codec_config=codec
    )
    return seeded(CsmForConditionalGeneration, config)


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_a_cache_layer_of_the_family_goes_back_by_itself(monkeypatch, do_sample):
    """MiniMax-M3 keeps keys of an indexer beside its own, in blocks of the cache: no tree, but chains, with images."""
    target = minimax_m3()
    pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": pixels.to(target.dtype)}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    options = OPTIONS | {"do_sample": do_sample, "return_dict_in_generate": True}
    torch.manual_seed(0)
    plain = target.generate(**inputs, **options)
    truth = plain.sequences[:, IDS.shape[1] :].tolist()
    scripted(monkeypatch, lambda: ScriptedChainDrafter(truth, seed=0))
    torch.manual_seed(0)
    ours = target.generate(**inputs, **options, assistant_model=random_draft(target))
    assert torch.equal(plain.sequences, ours.sequences)
    assert ours.target_forwards < OPTIONS["max_new_tokens"]
    assert not can_verify_trees(target)
    for expected, got in zip(cache_of(plain).layers, cache_of(ours).layers, strict=True):
        assert type(got) is type(expected)
        for name in ("keys", "idx_keys") if goes_back_alone(got) else ("keys",):
            torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-4, rtol=1e-4)
    assert any(map(goes_back_alone, cache_of(ours).layers))


def test_images_in_every_step(caplog):
    """IDEFICS asks for them in every forward, so that nothing can be tried with text alone."""
    target = idefics()
    pixels = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(target.dtype)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": pixels}
    inputs["image_attention_mask"] = torch.ones(1, IDS.shape[1], 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"Idefics.* cannot verify drafts: .* over text alone fails \(Exactly 1 of"):
        target.generate(**inputs, **OPTIONS, do_sample=False, assistant_model=random_draft(target))
    plain = target.generate(**inputs, **OPTIONS, do_sample=False)
    eagle_hf.attach(target, random_draft(target))
    assert torch.equal(target.generate(**inputs, **OPTIONS, do_sample=False), plain)
    assert "run without the attached draft" in caplog.text


def test_codebooks():
    """CSM writes several tokens per step, of which a draft knows nothing."""
    target = csm()
    with pytest.raises(ValueError, match=r"ASSISTED_GENERATION is not supported for CSM"):  # by transformers itself
        target.generate(IDS, **OPTIONS, do_sample=False, assistant_model=random_draft(target))
    with pytest.raises(
        ValueError, match=r"Csm\S+ writes its output in a loop of its own \(`CsmGenerationMixin._sample"
    ):
        eagle_hf.attach(target, random_draft(target))


class OwnLoop(LlamaForCausalLM):
    """As CSM, Higgs Audio, Pocket TTS and VibeVoice have one."""

    def _sample(self, input_ids, *args, **kwargs):
        return torch.cat([input_ids, input_ids], dim=1)


def test_a_loop_of_its_own():
    """Whose text would not be that of ours."""
    target = tiny_target("llama")
    target.__class__ = OwnLoop
    with pytest.raises(ValueError, match=r"OwnLoop writes its output in a loop of its own \(`OwnLoop._sample`\)"):
        target.generate(IDS, **OPTIONS, do_sample=False, assistant_model=random_draft(target))
    with pytest.raises(ValueError, match="in a loop of its own"):
        eagle_hf.attach(target, random_draft(target))
