"""What a target's configuration says is read in one place, for every decoder of `transformers`."""

import re
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from every_decoder import decoder_or_skip, model_types, tiny_config
from transformers import AutoConfig, PreTrainedConfig

from eagle_hf.target.config import TargetConfig, position_limit


SOURCES = Path(__file__).parents[2] / "src" / "eagle_hf"
FIELDS = "vocab_size|hidden_size|num_hidden_layers|max_position_embeddings|_attn_implementation"


def read(model_type, **fields):
    return TargetConfig(AutoConfig.for_model(model_type, **fields))


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "max_position_embeddings"),
        ("gpt2", "n_positions"),
        ("codegen", "n_positions"),
        ("mpt", "max_seq_len"),
        ("dbrx", "max_seq_len"),
        ("whisper", "max_target_positions"),
        ("rwkv", "context_length"),
        ("bloom", "seq_length"),  # that of its published checkpoints
    ],
)
def test_positions_have_many_names(model_type, name):
    assert read(model_type, **{name: 321}).num_positions == 321


@pytest.mark.parametrize("model_type", ["bloom", "mamba", "xlnet"])
def test_targets_that_name_no_positions_have_none(model_type):
    assert read(model_type).num_positions is None


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "rms_norm_eps"), ("cohere2", "layer_norm_eps"), ("gpt2", "layer_norm_epsilon"), ("lfm2", "norm_eps"),
        ("starcoder2", "norm_epsilon"),
    ],
)  # fmt: skip
def test_epsilon_has_many_names(model_type, name):
    assert read(model_type, **{name: 0.125}).norm_eps == 0.125


def test_epsilon_without_a_name_or_a_value_is_the_usual_one():
    assert read("opt").norm_eps == read("olmo").norm_eps == 1e-5
    assert TargetConfig(PreTrainedConfig(rms_norm_eps=None)).norm_eps == 1e-5


def test_sizes_that_differ_between_layers_are_those_of_full_attention():
    if "gemma4_text" in model_types():
        kinds = ["sliding_attention", "full_attention"]
        config = read("gemma4_text", num_hidden_layers=2, layer_types=kinds, head_dim=8, num_attention_heads=4)
        assert config.head_dim in (8, 512)  # one that some layer has; 512 where it can tell which
    config = read("gemma3n_text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"],
                  intermediate_size=[48, 64], num_kv_shared_layers=0)  # fmt: skip
    assert config.intermediate_size == 64
    assert config.rope_parameters["rope_theta"] == 1_000_000.0


def test_targets_without_attention_get_heads_that_divide_their_width():
    config = read("mamba2", hidden_size=256, num_heads=8, head_dim=64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, None)


def test_key_heads_that_do_not_divide_the_heads_are_not_taken():
    assert TargetConfig(PreTrainedConfig(num_attention_heads=6, num_key_value_heads=4)).num_key_value_heads == 6


def test_no_padding_is_written_in_two_ways():
    assert read("llama", pad_token_id=-1).special_token_ids["pad_token_id"] is None
    assert read("codegen").special_token_ids["pad_token_id"] is None
    assert read("llama", eos_token_id=[2, 3]).special_token_ids["eos_token_id"] == [2, 3]


def test_nothing_is_read_before_it_is_asked_for():
    config = TargetConfig(PreTrainedConfig(hidden_size=32))
    assert config.hidden_size == 32
    with pytest.raises(ValueError, match="has no `vocab_size`"):
        _ = config.vocab_size


def test_the_decoder_of_a_multimodal_target_is_read():
    whole = AutoConfig.for_model("llava")
    assert TargetConfig(whole).hidden_size == whole.text_config.hidden_size


@pytest.mark.parametrize(
    ("name", "limit"),
    [("gpt2-learned-positions", 128), ("opt-learned-positions", 128), ("llama", None), ("falcon-multi-query", None)],
)
def test_tables_of_positions_end(name, limit):
    target = tiny_target(name)
    assert position_limit(target) == limit
    if limit is not None:
        with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
            target(torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("model_type", ["longcat_flash"])
def test_layers_are_one_less_than_hidden_states(model_type):
    target = decoder_or_skip(model_type)
    with torch.no_grad():
        hidden_states = target(torch.arange(3, 12)[None], output_hidden_states=True).hidden_states
    num_layers = TargetConfig(target.config).num_layers
    if model_type in RUN_TWICE:
        assert num_layers < len(hidden_states) - 1
    else:
        assert num_layers == len(hidden_states) - 1


# Some of their layers run several times in a forward: heads are offered the layers, not the runs.
RUN_TWICE = {"dory", "inkling2_loop_text"}

# Positions end, but not with a table: biases of a fixed size, axial positions, those of several tokens ahead.
NO_TABLE = {"mpt", "reformer", "prophetnet"}


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", list(model_types()))
def test_of_every_decoder(model_type):
    target = decoder_or_skip(model_type)
    test_layers_are_one_less_than_hidden_states(model_type)
    limit = position_limit(target)
    longest = limit if limit is not None else 300  # more than the 256 of the tiny configurations
    if model_type not in NO_TABLE:
        with torch.no_grad():
            assert target(torch.full((1, longest), 5)).logits.isfinite().any()
    config = TargetConfig(tiny_config(model_type))
    for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        assert getattr(config, name) > 0, name
    assert 0 < config.norm_eps < 1e-2


def test_nobody_else_reads_the_fields_of_a_target():
    """Of a whole target, that is: what was read of it once may be handed on."""
    reads = re.compile(rf"get_text_config\([^)]*\)\.({FIELDS})|config, ['\"]({FIELDS})['\"]")
    found = [
        f"{path.relative_to(SOURCES)}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "target_config.py" and reads.search(line)
    ]
    assert found == []
