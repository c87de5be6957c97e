"""Every option of a head, and several together, through every layout and back: bit by bit, or refused."""

import pytest
import torch
from engines.heads import HEADS, PLAIN, VOCAB, drawn_heads

from eagle_hf import EagleConfig, EagleDraftModel
from eagle_hf.checkpoints import export_checkpoint
from eagle_hf.checkpoints.ascending import ascending
from eagle_hf.checkpoints.exporting import LAYOUTS


NUM_LAYERS = 24
LAYOUT_NAMES = [name for name in LAYOUTS if name not in ("specforge", "tensorrt-llm", "speculators")]  # parts of others


def small_head(fields):
    """The head that engines are compared with, with fewer tokens."""
    sizes = {None: None, VOCAB: 96}
    fields = PLAIN | fields
    fields |= {"vocab_size": 96, "draft_vocab_size": sizes.get(fields["draft_vocab_size"], 40), "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = EagleDraftModel(EagleConfig(**fields)).eval()
        for name, parameter in draft.named_parameters():
            if "norm" in name or parameter.dim() == 1:
                parameter.data.uniform_(0.5, 1.5)
    if draft.has_reduced_vocabulary:
        draft.set_draft_vocabulary(torch.arange(40) * 2 + 1)
    return draft


def same_feature_states(config):
    ids = config.resolve_feature_layer_ids(NUM_LAYERS)
    return ids, config.feature_sources(NUM_LAYERS)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_it_comes_back_or_is_refused(tmp_path, layout):
    written = []
    for name, fields in (HEADS | drawn_heads(4)).items():
        draft = small_head(fields)
        try:
            folder = export_checkpoint(draft, tmp_path / "head", layout, target="org/target")
        except ValueError:
            continue
        written.append(name)
        again = EagleDraftModel.from_pretrained(folder)
        (tmp_path / "head" / "pytorch_model.bin").unlink(missing_ok=True)
        keeps_order = layout == "llama.cpp" or min(draft.config.feature_layer_ids or [0]) < 0
        config, weights = (
            (draft.config, draft.state_dict()) if keeps_order else ascending(draft.config, draft.state_dict())
        )
        found = again.state_dict()
        added = {"fc.bias"} - weights.keys() if draft.config.eagle_version == 1 and layout == "sglang" else set()
        assert all(not found.pop(extra).any() for extra in added), name
        dropped = set() if again.config.own_embed_tokens else {"embed_tokens.weight"}
        assert found.keys() == weights.keys() - dropped, name
        assert all(torch.equal(tensor, weights[key]) for key, tensor in found.items()), name
        assert same_feature_states(again.config) == same_feature_states(config), name
        for field in (
            "eagle_version", "draft_vocab_size", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output",
            "qk_norm", "num_hidden_layers", "sliding_window", "sliding_window_layers", "parallel_drafting",
            "mask_token_id", "rope_parameters", "rms_norm_eps", "kv_lora_rank", "head_dim", "num_key_value_heads",
        ):  # fmt: skip
            assert getattr(again.config, field) == getattr(config, field), (name, field)
    assert len(written) >= {"safeailab": 6, "llama.cpp": 12, "modelopt": 12}.get(layout, 20)
