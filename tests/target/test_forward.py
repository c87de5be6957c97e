"""Tree forwards: every node's logits are those of a plain forward of its path, whatever attention the target uses."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_target
from transformers import DynamicCache

from eagle_hf import DraftTree
from eagle_hf.target.forward import attention_implementation, attention_with_masks, forward_tree
from eagle_hf.target.masks import TreeMasks
from eagle_hf.versions import CACHE, cache_of


def tree_logits(target, prompt, tree):
    cache = cache_of(target(prompt, **{CACHE: DynamicCache(config=target.config)}, use_cache=True))
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = True
    masks = TreeMasks(target.config, cache, prompt_mask=None)
    position = torch.tensor([[prompt.shape[1]]])
    return forward_tree(target, tree, position, [prompt.shape[1]], cache, masks).logits[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_node_of_a_bushy_tree(name):
    """The prompt is longer than the sliding windows, and the tree deeper than what is left of them."""
    target = tiny_target(name)
    prompt = torch.randint(3, 90, (1, 21), generator=torch.Generator().manual_seed(0))
    paths = [[5, 6, 7, 8, 9], [5, 6, 10], [5, 11], [12, 13, 14], [15]]
    tree = DraftTree.from_paths(4, paths)
    logits = tree_logits(target, prompt, tree)
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    contexts = [[4]]
    for node in range(1, len(tokens)):
        contexts.append([*contexts[parents[node]], tokens[node]])
    for node, context in enumerate(contexts):
        cache = DynamicCache(config=target.config)
        target(prompt, **{CACHE: cache}, use_cache=True)
        for offset, token in enumerate(context):  # as plain generate: token by token
            expected = target(
                torch.tensor([[token]]),
                position_ids=torch.tensor([[21 + offset]]),
                **{CACHE: cache},
                use_cache=True,
            ).logits[0, -1]
        torch.testing.assert_close(logits[node], expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_eager_attention_gets_additive_masks():
    target = tiny_target("qwen2-mixed")
    prompt, tree = torch.arange(3, 24)[None], DraftTree.from_paths(4, [[5, 6], [7, 8]])
    expected = tree_logits(target, prompt, tree)
    target.set_attn_implementation("eager")
    torch.testing.assert_close(tree_logits(target, prompt, tree), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@torch.no_grad()
def test_attention_without_masks_per_node_is_replaced_for_the_tree_forward_only(implementation):
    """Flex attention given such a mask has ended processes on a CPU."""
    target = tiny_target("llama")
    prompt, tree = torch.arange(3, 12)[None], DraftTree.from_paths(4, [[5, 6], [7, 8]])
    expected = tree_logits(target, prompt, tree)
    cache = cache_of(target(prompt, **{CACHE: DynamicCache(config=target.config)}, use_cache=True))
    target.config._attn_implementation = implementation
    masks = TreeMasks(target.config, cache, prompt_mask=None)
    got = forward_tree(target, tree, torch.tensor([[9]]), [9], cache, masks).logits[0]
    assert target.config._attn_implementation == implementation
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_the_implementation_comes_back_after_an_exception(implementation):
    target = tiny_target("llama")
    target.config._attn_implementation = implementation

    def fail():
        with attention_with_masks(target):
            assert target.config._attn_implementation == "sdpa"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.config._attn_implementation == implementation


def test_threads_that_overlap_restore_the_implementation():
    """The second thread enters while the first one has replaced it, and leaves last; both know the target's own."""
    target = tiny_target("llama")
    target.config._attn_implementation = "flash_attention_2"
    first, second = attention_with_masks(target), attention_with_masks(target)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert target.config._attn_implementation == "sdpa"  # the second one is still inside
    assert attention_implementation(target) == "flash_attention_2"
    second.__exit__(None, None, None)
    assert target.config._attn_implementation == attention_implementation(target) == "flash_attention_2"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_attention_that_reads_masks_is_left_alone(implementation):
    """Nothing is written to the config, not even what stands there already."""
    target, written = tiny_target("qwen2-mixed"), []
    target.set_attn_implementation(implementation)

    class Watched(type(target.config)):
        def __setattr__(self, name, value):
            written.append(name)
            super().__setattr__(name, value)

    target.config.__class__ = Watched
    tree_logits(target, torch.arange(3, 24)[None], DraftTree.from_paths(4, [[5, 6], [7, 8]]))
    assert [name for name in written if "attn" in name] == []
