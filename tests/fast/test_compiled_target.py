"""Static caches, and steps that are compiled: the same text, the same cache, no new graph from call to call."""

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from promises import PROMPT_LENGTHS, an_eos_token, left_padded_prompts, target_of, with_and_without_draft
from transformers import CompileConfig, StaticCache

from eagle_hf import DraftTree
from eagle_hf.cache.fixed import capacity, with_room
from eagle_hf.drafting.policy import FixedSize, Plan
from eagle_hf.fast.compiled_target import CompiledForward, CompiledTarget
from eagle_hf.versions import CACHE, cache_of


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
    assert isinstance(cache_of(ours), StaticCache)


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
                **{CACHE: caches[-1]},
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


def test_a_second_size_of_caches_needs_graphs_and_further_ones_need_none(compile_config):
    """The second size that is met leaves the number of columns open, as PyTorch does by itself."""
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    settings = {**inputs, "eos_token_id": None, "do_sample": False}
    counts = []
    for max_new_tokens in (20, 90, 150, 210):
        plain = target.generate(**settings, max_new_tokens=max_new_tokens)
        ours = target.generate(
            **settings, max_new_tokens=max_new_tokens, assistant_model=draft, cache_implementation="static",
            compile_config=compile_config,
        )  # fmt: skip
        assert torch.equal(plain, ours)
        counts.append(compile_config.backend.count)
    assert counts[0] < counts[1] == counts[2] == counts[3]


def test_a_target_that_changes_between_compiled_calls_is_seen(compile_config):
    """Its modules are not guarded; they are looked over in every call."""
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    settings = {**inputs, "max_new_tokens": 24, "eos_token_id": None, "do_sample": False}
    texts = []
    for activation in (torch.nn.SiLU(), torch.nn.Tanh()):
        for layer in target.model.layers:
            layer.mlp.act_fn = activation
        texts.append(target.generate(**settings))
        ours = target.generate(
            **settings, assistant_model=draft, cache_implementation="static", compile_config=compile_config
        )
        assert torch.equal(texts[-1], ours)
    assert not torch.equal(*texts)


def test_graphs_of_the_target_get_tokens_of_one_kind(compile_config, monkeypatch):
    """Views, and tensors made in inference mode, would need graphs of their own."""
    tokens, call = [], CompiledForward.__call__
    monkeypatch.setattr(
        CompiledForward, "__call__", lambda self, **kw: tokens.append(kw["input_ids"]) or call(self, **kw)
    )
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), num_assistant_tokens=6, draft_depth=3, draft_width=2, draft_tree="auto")
    target.generate(
        **inputs, assistant_model=draft, max_new_tokens=24, eos_token_id=None, do_sample=False,
        cache_implementation="static", compile_config=compile_config,
    )  # fmt: skip
    assert min(t.shape[1] for t in tokens) == 2 < max(t.shape[1] for t in tokens)  # plain steps, and drafted ones
    assert not any(t.is_inference() for t in tokens)
    assert all(t.stride() == (t.shape[1], 1) for t in tokens)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_steps_are_whole_graphs(compile_config, name, version):
    """What ends a graph costs more than compiling gains; `FewRowProducts` adds ways to do so."""
    torch._dynamo.utils.counters.clear()
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target, version), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    settings = {**inputs, "max_new_tokens": 12, "eos_token_id": None, "do_sample": False}
    ours = target.generate(
        **settings, assistant_model=draft, cache_implementation="static", compile_config=compile_config
    )
    assert torch.equal(target.generate(**settings), ours)
    assert compile_config.backend.count > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_full_cache_has_no_room_for_a_second_row(compile_config):
    """Compiled plain steps run over two rows where they can."""
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    settings = {**inputs, "max_new_tokens": 12, "eos_token_id": None, "do_sample": False}
    cache = StaticCache(config=target.config, max_cache_len=inputs["input_ids"].shape[1] + 11)
    ours = target.generate(
        **settings, assistant_model=random_draft(target), **{CACHE: cache}, compile_config=compile_config
    )
    assert compile_config.backend.count > 0
    assert torch.equal(target.generate(**settings), ours)


def test_a_static_cache_alone_compiles_nothing_on_a_cpu(monkeypatch):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    monkeypatch.setattr(type(target), "get_compiled_call", lambda *args: pytest.fail("compiled"))
    target.generate(**inputs, assistant_model=random_draft(target), cache_implementation="static", max_new_tokens=5)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], (1,), PROMPT_LENGTHS], ids=["single", "one token", "ragged"])
def test_trees_of_equal_size_as_on_a_gpu_and_a_compiled_draft(compile_config, monkeypatch, kind, version, lengths):
    target, inputs = tiny_target("llama"), left_padded_prompts(lengths)
    draft = use_options(
        random_draft(target, version), num_assistant_tokens=6, draft_depth=3, draft_width=2, draft_tree=kind,
        output_draft_trees=True,
    )  # fmt: skip
    settings = {**inputs, "max_new_tokens": 20, "eos_token_id": 5, "do_sample": False, "return_dict_in_generate": True}
    eager = target.generate(**settings, assistant_model=draft)
    monkeypatch.setattr(CompiledTarget, "has_fixed_shapes", True)
    sizes, verify = set(), CompiledTarget._forward
    monkeypatch.setattr(
        CompiledTarget, "_forward", lambda self, tree, **kw: sizes.add(tree.num_nodes) or verify(self, tree, **kw)
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


def compiled_and_eager(compile_config, draft, inputs, **settings):
    """Outputs of compiled and of other steps, with their trees."""
    target = tiny_target("llama")
    settings = {"max_new_tokens": 20, "eos_token_id": None, "return_dict_in_generate": True, **settings}
    compiled = {"cache_implementation": "static", "compile_config": compile_config}
    outputs = []
    for options in (compiled, {}):
        torch.manual_seed(0)
        outputs.append(target.generate(**inputs, **settings, **options, assistant_model=draft))
    return outputs


def test_a_padded_prompt_of_a_single_row_is_read_as_it_is(compile_config):
    inputs = {"input_ids": torch.tensor([[0, 0, 0, 7, 8, 9]]), "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    draft = use_options(random_draft(tiny_target("llama")), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    draft.generation_config.output_draft_trees = True
    ours, eager = compiled_and_eager(compile_config, draft, inputs, do_sample=False)
    assert torch.equal(ours.sequences, eager.sequences)
    for (our_tree, _), (tree, _) in zip(ours.draft_trees, eager.draft_trees, strict=True):
        assert torch.equal(our_tree.tokens, tree.tokens)
        torch.testing.assert_close(our_tree.scores, tree.scores)


@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_improbable_nodes_are_left_out_of_compiled_trees_as_of_others(compile_config, lengths):
    draft = use_options(random_draft(tiny_target("llama")), num_assistant_tokens=8, draft_depth=3, draft_width=3)
    draft.generation_config.output_draft_trees = True
    draft.generation_config.draft_threshold = 0.012  # about one in VOCAB_SIZE, as likely as tokens of a random head are
    ours, eager = compiled_and_eager(compile_config, draft, left_padded_prompts(lengths), do_sample=False)
    assert torch.equal(ours.sequences, eager.sequences)
    sizes = {tree.num_nodes for tree, _ in ours.draft_trees}
    assert min(sizes) < 9
    for (our_tree, _), (tree, _) in zip(ours.draft_trees, eager.draft_trees, strict=True):
        assert torch.equal(our_tree.tokens, tree.tokens)
        assert torch.equal(our_tree.parents, tree.parents)


@SAMPLINGS
def test_features_of_plain_steps_are_read_however_many_they_are(compile_config, monkeypatch, sampling):
    """More of them than one graph reads: here after seven steps without a tree."""

    def every_eighth(policy, max_depth):
        steps = getattr(policy, "steps", 0) + 1
        object.__setattr__(policy, "steps", steps)
        return Plan(drafts=steps % 8 == 0)

    monkeypatch.setattr(FixedSize, "plan", every_eighth)
    draft = use_options(random_draft(tiny_target("llama")), num_assistant_tokens=6, draft_depth=3, draft_width=2)
    draft.generation_config.output_draft_trees = True
    inputs = left_padded_prompts(PROMPT_LENGTHS[:1])
    ours, eager = compiled_and_eager(compile_config, draft, inputs, max_new_tokens=40, **sampling)
    assert torch.equal(ours.sequences, eager.sequences)
    assert {tree.num_nodes for tree, _ in ours.draft_trees} == {1, 7}
    for (our_tree, _), (tree, _) in zip(ours.draft_trees, eager.draft_trees, strict=True):
        assert torch.equal(our_tree.tokens, tree.tokens)


def test_compiled_trees_of_automatic_size_need_one_graph_for_the_head(compile_config):
    target, inputs = tiny_target("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), draft_tree="auto", num_assistant_tokens=6, draft_depth=3, draft_width=2)
    ours, eager = compiled_and_eager(compile_config, draft, inputs, max_new_tokens=60, do_sample=True)
    assert torch.equal(ours.sequences, eager.sequences)
    assert ours.tree_sizing.num_drafted_steps > 0


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
