"""
Targets whose last layers read the keys and values of earlier ones (Gemma 4 E2B and E4B, Gemma 3n): these layers have no
cache, and run for the last token of a prompt alone unless hidden states are asked for.
"""

import functools

import pytest
import torch
from conftest import use_options
from doubles import ScriptedDrafter, random_draft, scripted
from every_decoder import model_types
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from eagle_hf.cache.layers import holds_keys, layers_with_keys
from eagle_hf.target.config import TargetConfig
from eagle_hf.target.features import FeatureReader
from eagle_hf.training import new_head
from eagle_hf.versions import CACHE, STATELESS_LAYERS, cache_of


SLIDING, FULL = "sliding_attention", "full_attention"
# As E2B and E4B: one layer in five or six with full attention and heads of another width, about half of them shared.
SHAPES = {
    "gemma4-E2B": ("gemma4_text", {"layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2}),
    "gemma4-E4B": (
        "gemma4_text",
        {"layer_types": [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL], "num_kv_shared_layers": 4,
         "num_key_value_heads": 2, "use_double_wide_mlp": True},
    ),
    "gemma4-deep": ("gemma4_text", {"layer_types": [SLIDING, FULL] * 4, "num_kv_shared_layers": 4}),
    "gemma3n": (
        "gemma3n_text",
        {"layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2, "laurel_rank": 8,
         "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
    ),
}  # fmt: skip
pytestmark = pytest.mark.skipif("gemma4_text" not in model_types(), reason="no Gemma 4 in this transformers")
GREEDY = {"do_sample": False, "eos_token_id": None}
NEW_TOKENS = 20


@functools.cache
def target_of(name, dtype=torch.float32):
    model_type, shape = SHAPES[name]
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": len(shape["layer_types"]), "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 8, "global_head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 8,
            "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 2,
            "bos_token_id": 1,
        }
        | shape,
    )  # fmt: skip
    if model_type != "gemma4_text":
        config.__dict__.pop("global_head_dim", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    target.generation_config.pad_token_id = 0
    return target


def prompts(rows=1):
    ids = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(5))[:rows]
    mask = torch.ones_like(ids)
    for row, padding in enumerate([0, 3, 6][:rows]):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def with_and_without(monkeypatch, target, rows=1, feature_layer_ids=(0, 1, 2), **kwargs):
    """Outputs of plain `generate` and of `generate` with trees that are partly right."""
    inputs, outputs = prompts(rows), []
    version = 1 if list(feature_layer_ids) == [-1] else 3
    head = random_draft(target, version, feature_layer_ids=list(feature_layer_ids))
    kwargs = {"max_new_tokens": NEW_TOKENS, "return_dict_in_generate": True} | GREEDY | kwargs
    for draft in (None, head):
        if draft is not None:
            truth = outputs[0].sequences[:, inputs["input_ids"].shape[1] :].tolist()
            scripted(monkeypatch, lambda truth=truth: ScriptedDrafter(truth, seed=1))
        torch.manual_seed(2)
        outputs.append(target.generate(**inputs, **kwargs, assistant_model=draft))
    monkeypatch.undo()
    return outputs


# Before, across and in the shared part, the last state before and after its norm.
CHOICES = [
    *((name, ids) for name in ("gemma4-E2B", "gemma4-E4B") for ids in ([0, 1, 2], [1, 3, 4], [3, 4], [4, 5, -1])),
    ("gemma4-E2B", [2, 3, 5]),
    ("gemma4-E2B", [-1]),
    ("gemma3n", [-1]),
]


@pytest.mark.parametrize(("name", "feature_layer_ids"), CHOICES, ids=str)
def test_every_choice_of_layers(monkeypatch, name, feature_layer_ids):
    target = target_of(name)
    for rows, do_sample in ((1, False), (3, True)):
        plain, ours = with_and_without(monkeypatch, target, rows, feature_layer_ids, do_sample=do_sample)
        assert torch.equal(plain.sequences, ours.sequences)
        assert ours.target_forwards < NEW_TOKENS
        for theirs, layer in zip(cache_of(plain).layers, cache_of(ours).layers, strict=True):
            assert holds_keys(layer) == holds_keys(theirs)
            if rows == 1 and holds_keys(layer):
                torch.testing.assert_close(layer.keys, theirs.keys, atol=2e-4, rtol=1e-3)


@pytest.mark.skipif(not STATELESS_LAYERS, reason="before 5.23 all layers run for all tokens")
def test_the_layers_that_a_new_head_reads():
    """One of them lies in the shared part."""
    target = target_of("gemma4-deep")
    head = use_options(new_head(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    first_shared = list(target.config.kv_sharing_modes).index("reuse")
    assert max(head.config.feature_layer_ids) > first_shared  # hidden state i is the output of layer i - 1
    for rows in (1, 2):
        plain, ours = (
            target.generate(**prompts(rows), assistant_model=draft, max_new_tokens=12, **GREEDY)
            for draft in (None, head)
        )
        assert torch.equal(plain, ours)


@pytest.mark.parametrize("feature_layer_ids", [[1, 3, 4], [4, 5]])
def test_the_head_gets_the_features_of_all_tokens(monkeypatch, feature_layer_ids):
    target, read = target_of("gemma4-E2B"), []

    class Recorder(ScriptedDrafter):
        def defer_prompt(self, states, *args):
            read.append(torch.cat(states, dim=-1))

        def read_accepted(self, features, tokens, counts):
            read.append(features)
            super().read_accepted(features, tokens, counts)

    text = target.generate(**prompts(), max_new_tokens=NEW_TOKENS, **GREEDY)
    scripted(monkeypatch, lambda: Recorder(text[:, 11:].tolist(), seed=0))
    head = random_draft(target, feature_layer_ids=feature_layer_ids)
    target.generate(**prompts(), max_new_tokens=NEW_TOKENS, **GREEDY, assistant_model=head)
    got = torch.cat(read, dim=1)[0]
    with FeatureReader(target, head.config) as reader, torch.no_grad():
        expected = reader.concatenate(reader.states(target(text, output_hidden_states=True).hidden_states))[0]
    assert len(got) >= 11 + NEW_TOKENS - 5
    torch.testing.assert_close(got, expected[: len(got)], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"output_hidden_states": True},
        {"prefill_chunk_size": 4},
        {"repetition_penalty": 1.2},
        {"cache_implementation": "dynamic", "output_scores": True},
    ],
    ids=str,
)
def test_options(monkeypatch, options):
    for rows in (1, 3):
        plain, ours = with_and_without(monkeypatch, target_of("gemma4-E2B"), rows, [1, 3, 4], **options)
        assert torch.equal(plain.sequences, ours.sequences)
    if "output_hidden_states" in options:
        for theirs, states in zip(plain.hidden_states, ours.hidden_states, strict=True):
            assert [state.shape for state in states] == [state.shape for state in theirs]


def test_a_second_turn_on_a_kept_cache(monkeypatch):
    target, texts = target_of("gemma4-E2B"), []
    for output in with_and_without(monkeypatch, target, 1, [1, 3, 4], max_new_tokens=9):
        ids = torch.cat([output.sequences, torch.tensor([[7, 9, 11]])], dim=1)
        head = random_draft(target, feature_layer_ids=[1, 3, 4]) if texts else None
        texts.append(
            target.generate(ids, max_new_tokens=9, assistant_model=head, **{CACHE: cache_of(output)}, **GREEDY)
        )
    assert torch.equal(*texts)


def test_half_precision(monkeypatch):
    """Features of bfloat16 layers; a text may part at a near tie only."""
    target = target_of("gemma4-E2B", torch.bfloat16)
    head = use_options(random_draft(target, feature_layer_ids=[1, 3, 4]), num_assistant_tokens=6, draft_depth=3)
    plain, ours = (
        target.generate(**prompts(), assistant_model=draft, max_new_tokens=NEW_TOKENS, **GREEDY)
        for draft in (None, head)
    )
    differs = (plain != ours)[0].nonzero()
    if len(differs):
        with torch.no_grad():
            logits = target(plain[:, : int(differs[0])]).logits[0, -1].float()
        best = logits.topk(2).values
        assert best[0] - best[1] <= 4 * 2**-7 * logits.abs().max()


@pytest.mark.skipif(not STATELESS_LAYERS, reason="before 5.23 all layers run for all tokens")
def test_features_of_some_tokens_only_are_refused(monkeypatch):
    """What would become of a target whose layers are cut without its configuration saying so."""
    target = target_of("gemma4-E2B")
    head = random_draft(target, feature_layer_ids=[4, 5])  # read from the layers themselves, which asks for nothing
    target.generate(**prompts(), max_new_tokens=3, assistant_model=head, **GREEDY)
    monkeypatch.setattr(TargetConfig, "borrows_keys", False)
    with pytest.raises(ValueError, match="hidden state 4, which has 1 tokens instead of the 11 of the forward"):
        target.generate(**prompts(), max_new_tokens=3, assistant_model=head, **GREEDY)


def test_several_streams_are_refused_with_what_helps():
    """Gemma 3n keeps four of them between its layers."""
    target = target_of("gemma3n")
    head = random_draft(target, feature_layer_ids=[0, 1, 2])
    with pytest.raises(ValueError, match="keeps several streams there, which no head reads.*use a head with"):
        target.generate(**prompts(), max_new_tokens=3, assistant_model=head, **GREEDY)


def test_several_streams_are_read_where_they_have_come_together():
    """What the `lm_head` reads, for every token of the prompt."""
    target = target_of("gemma3n")
    reader = FeatureReader(target, random_draft(target, 1).config)
    with torch.no_grad(), reader:
        outputs = target(**prompts(), output_hidden_states=reader.output_hidden_states)
        (state,) = reader.states(outputs.hidden_states, prompts()["input_ids"].shape[1])
    logits = target.lm_head(state)
    soft_cap = target.config.final_logit_softcapping
    torch.testing.assert_close((logits / soft_cap).tanh() * soft_cap if soft_cap else logits, outputs.logits)


def test_layers_without_a_cache_are_asked_for_no_keys():
    target = target_of("gemma4-E4B")
    cache = DynamicCache(config=target.config)
    assert not layers_with_keys(cache)
    with torch.no_grad():
        target(prompts()["input_ids"], **{CACHE: cache})
    assert [holds_keys(layer) for layer in cache.layers] == [True, True, *[False] * 4][: len(cache.layers)]
