"""Static caches, and steps that are compiled: the same text, the same cache, no new graph from call to call."""

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from test_lossless import PROMPT_LENGTHS, an_eos_token, left_padded_prompts, target_of, with_and_without_draft
from transformers import CompileConfig, StaticCache

from eagle_hf import DraftTree
from eagle_hf.generation.fixed_shapes import with_room
from eagle_hf.generation.target import Target
from eagle_hf.kv_cache import capacity


FULL_ATTENTION = ["llama", "mixtral-moe", "qwen3", "gemma", "gpt-neox", "olmo2"]
SAMPLINGS = pytest.mark.parametrize(
    "sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 20}], ids=["greedy", "sampled"]
)


class CountingBackend:
    """Compiles nothing, and counts how often it was asked to."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward

    def __deepcopy__(self, memo):
        return self  # `CompileConfig.to_dict` copies


@pytest.fixture
def compile_config():
    torch._dynamo.reset()
    yield CompileConfig(backend=CountingBackend(), mode="default")
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FULL_ATTENTION)
@SAMPLINGS
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_with_a_static_cache_the_text_is_that_of_plain_generate(monkeypatch, name, sampling, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    eos = an_eos_token(target, inputs, **sampling)
    plain, ours, plain_state, our_state = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=eos, cache_implementation="static", **sampling
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, our_state)
    assert max(n for row in ours.acceptance_lengths for n in row) > 1
    assert isinstance(ours.past_key_values, StaticCache)


@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
@pytest.mark.parametrize("columns", [39, 40, 44])  # the first is what plain `generate` needs: 16 + 24 - 1
def test_a_passed_static_cache_is_filled_as_plain_generate_fills_it(lengths, columns):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    caches, outputs = [], []
    for assistant in (None, use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)):
        caches.append(StaticCache(config=target.config, max_cache_len=columns))
        outputs.append(
            target.generate(
                **inputs,
                assistant_model=assistant,
                past_key_values=caches[-1],
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
            )
        )
    assert torch.equal(*outputs)
    for plain, ours in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(ours.keys, plain.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.values, plain.values, atol=1e-4, rtol=1e-4)
        assert ours.get_seq_length() == plain.get_seq_length()


def test_the_cache_of_a_call_has_room_for_a_tree_and_few_sizes():
    target = tiny_target("llama")
    sizes = {
        capacity(with_room(target, StaticCache(config=target.config, max_cache_len=n), 16)) for n in range(30, 110)
    }
    assert sizes == {64, 128}
    own = StaticCache(config=target.config, max_cache_len=30)
    own._is_user_defined = True
    assert with_room(target, own, 16) is own


@SAMPLINGS
def test_compiled_steps_write_the_same_text_and_need_no_new_graphs_in_later_calls(compile_config, sampling):
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    settings = {**inputs, "max_new_tokens": 24, "eos_token_id": None, **sampling}
    counts = []
    for seed in range(3):
        torch.manual_seed(seed)
        plain = target.generate(**settings)
        torch.manual_seed(seed)
        ours = target.generate(
            **settings, assistant_model=draft, cache_implementation="static", compile_config=compile_config
        )
        assert torch.equal(plain, ours)
        counts.append(compile_config.backend.count)
    assert counts[0] > 0
    assert counts[1] == counts[2]


def test_a_static_cache_alone_compiles_nothing_on_a_cpu(monkeypatch):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    monkeypatch.setattr(type(target), "get_compiled_call", lambda *args: pytest.fail("compiled"))
    target.generate(**inputs, assistant_model=random_draft(target), cache_implementation="static", max_new_tokens=5)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
def test_trees_of_equal_size_as_on_a_gpu_and_a_compiled_draft(compile_config, monkeypatch, kind, version):
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS)
    draft = use_options(
        random_draft(target, version), num_assistant_tokens=6, draft_depth=3, draft_width=2, draft_tree=kind,
        output_draft_trees=True,
    )  # fmt: skip
    settings = {**inputs, "max_new_tokens": 20, "eos_token_id": 5, "do_sample": False, "return_dict_in_generate": True}
    eager = target.generate(**settings, assistant_model=draft)
    monkeypatch.setattr(Target, "has_fixed_shapes", property(lambda self: self._compiled is not None))
    sizes, verify = set(), Target._forward
    monkeypatch.setattr(
        Target, "_forward", lambda self, tree, **kw: sizes.add(tree.num_nodes) or verify(self, tree, **kw)
    )
    for _ in range(2):
        ours = target.generate(
            **settings, assistant_model=draft, cache_implementation="static", compile_config=compile_config
        )
        assert torch.equal(eager.sequences, ours.sequences)
        assert len(eager.draft_trees) == len(ours.draft_trees)
        for (tree, paths), (our_tree, our_paths) in zip(eager.draft_trees, ours.draft_trees, strict=True):
            assert torch.equal(tree.tokens, our_tree.tokens)
            assert paths == our_paths
    assert len(sizes - {1}) == 1  # plain steps at the end of the text may come on top
    assert target.generate(**settings).sequences.equal(ours.sequences)


def test_padding_a_tree_adds_nodes_that_nobody_sees():
    tree = DraftTree.from_paths(7, [[1, 2], [1, 3], [4]])
    padded = tree.padded(8)
    assert padded.num_nodes == 8
    assert torch.equal(padded.ancestor_mask()[:, :5, :5], tree.ancestor_mask())
    assert not padded.ancestor_mask()[:, :5, 5:].any()
    assert tree.padded(3) is tree


def test_the_first_nodes_of_a_tree_are_a_tree():
    tree = DraftTree.from_paths(7, [[1, 2], [1, 3], [4]])
    for num_nodes in range(1, 6):
        first = tree.first(num_nodes)
        assert first.num_nodes == num_nodes
        assert torch.equal(first.ancestor_mask(), tree.ancestor_mask()[:, :num_nodes, :num_nodes])
    assert tree.first(9) is tree
