"""The cache after acceptance is the cache of a plain prefill of the accepted tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import Cache, DynamicCache, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from eagle_hf.cache.growing import GrowingCache, GrowingLayer
from eagle_hf.cache.keeping import align_columns, keep_nodes


def states(tokens: torch.Tensor) -> torch.Tensor:
    """Recognisable keys of shape `(batch_size, 2, len, 3)` for tokens of shape `(batch_size, len)`."""
    heads = torch.arange(1, 3)[None, :, None, None]
    return tokens[:, None, :, None] * heads + torch.arange(3) / 10


class TestKeepNodes:
    @staticmethod
    def run(layer, prompts, num_nodes, paths):
        """Prefill ragged rows by repeated acceptance, verify a tree, keep the paths; returns the layer and the rows."""
        batch = len(prompts)
        cache = Cache(layers=[layer])
        lengths = [1] * batch
        first = torch.tensor([[prompt[0]] for prompt in prompts])
        cache.update(states(first), -states(first), 0)
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.record_past = True
        longest = max(map(len, prompts)) - 1
        nodes = torch.tensor([[*prompt[1:], *[0] * (longest - len(prompt) + 1)] for prompt in prompts])
        if longest:
            cache.update(states(nodes), -states(nodes), 0)
            lengths = keep_nodes(cache, lengths, [range(len(prompt) - 1) for prompt in prompts], longest)
        assert lengths == [len(prompt) for prompt in prompts]
        tree = 1000 + torch.arange(batch * num_nodes).view(batch, num_nodes)
        cache.update(states(tree), -states(tree), 0)
        new_lengths = keep_nodes(cache, lengths, paths, num_nodes)
        rows = [
            [*prompt, *tree[row, list(path)].tolist()]
            for row, (prompt, path) in enumerate(zip(prompts, paths, strict=True))
        ]
        assert new_lengths == [len(row) for row in rows]
        return cache, rows

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def test_full_layers_hold_the_accepted_tokens_in_their_columns(self, data):
        cache, rows = self.run(DynamicLayer(), *draw_case(data))
        layer = cache.layers[0]
        assert layer.get_seq_length() == max(map(len, rows))
        for row, tokens in enumerate(rows):
            expected = states(torch.tensor([tokens]))[0]
            assert torch.equal(layer.keys[row, :, : len(tokens)], expected)
            assert torch.equal(layer.values[row, :, : len(tokens)], -expected)

    @settings(deadline=None, max_examples=150)
    @given(st.data(), st.integers(2, 9))
    def test_sliding_layers_hold_the_last_columns_of_every_row_right_aligned(self, data, window):
        cache, rows = self.run(DynamicSlidingWindowLayer(sliding_window=window), *draw_case(data))
        layer = cache.layers[0]
        num_slots = min(max(map(len, rows)), window - 1)
        assert layer.keys.shape[2] == num_slots
        assert layer.get_seq_length() == max(map(len, rows))
        for row, tokens in enumerate(rows):
            real = tokens[-num_slots:] if num_slots else []
            expected = states(torch.tensor([real]))[0]
            assert torch.equal(layer.keys[row, :, num_slots - len(real) :], expected)
            assert torch.equal(layer.values[row, :, num_slots - len(real) :], -expected)

    @settings(deadline=None, max_examples=100)
    @given(st.data(), st.integers(2, 9))
    def test_aligned_sliding_layers_hold_the_same_column_in_a_slot(self, data, window):
        cache, rows = self.run(DynamicSlidingWindowLayer(sliding_window=window), *draw_case(data))
        align_columns(cache, [len(row) for row in rows])
        layer, end = cache.layers[0], max(map(len, rows))
        num_slots = min(end, window - 1)
        for row, tokens in enumerate(rows):
            for slot, column in enumerate(range(end - num_slots, end)):
                if column < len(tokens):
                    assert torch.equal(layer.keys[row, :, slot], states(torch.tensor([[tokens[column]]]))[0, :, 0])

    def test_indexer_keys_move_along(self):
        layer = DynamicIndexedLayer()
        cache = Cache(layers=[layer])
        tokens = torch.arange(1, 8)[None]
        cache.update(states(tokens), -states(tokens), 0)
        layer.update_indexer(tokens[..., None].float())
        keep_nodes(cache, [3], [[0, 2, 3]], 4)
        assert layer.indexer_keys.flatten().tolist() == [1, 2, 3, 4, 6, 7]


def draw_case(data):
    batch, num_nodes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    prompts, paths = [], []
    for row in range(batch):
        length = data.draw(st.integers(1, 12))
        prompts.append(list(range(100 * row + 1, 100 * row + 1 + length)))
        rest = data.draw(st.lists(st.integers(1, num_nodes), unique=True, max_size=num_nodes))
        paths.append(sorted({0, *(node for node in rest if node < num_nodes)}))
    return prompts, num_nodes, paths


@pytest.fixture
def never_copying(monkeypatch):
    monkeypatch.setattr(GrowingLayer, "FEW_BYTES", 0)


class TestGrowingLayer:
    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(st.tuples(st.integers(1, 80), st.integers(0, 40)), min_size=1, max_size=12),
        st.sampled_from([0, 40, 150]),  # columns that are copied
    )
    def test_is_a_dynamic_layer_that_copies_less(self, steps, few):
        growing, plain = GrowingLayer(), DynamicLayer()
        growing.FEW_BYTES = few * states(torch.zeros(1, 1)).nbytes
        for number, (new, removed) in enumerate(steps):
            new_states = states(torch.arange(new)[None] + 100 * number)
            for layer in (growing, plain):
                layer.update(new_states, -new_states)
            assert torch.equal(growing.keys, plain.keys)
            assert torch.equal(growing.values, plain.values)
            removed = min(removed, plain.get_seq_length() - 1)
            for layer in (growing, plain):
                layer.crop(-removed)
            assert growing.get_seq_length() == plain.get_seq_length()

    def test_survives_others_replacing_its_states(self):
        growing, plain = GrowingLayer(), DynamicLayer()
        first = states(torch.arange(6).view(2, 3))
        for layer in (growing, plain):
            layer.update(first, first)
            layer.batch_select_indices(torch.tensor([1]))
            layer.update(first[:1], first[:1])
            layer.batch_repeat_interleave(2)
            layer.update(first, first)
        assert torch.equal(growing.keys, plain.keys)

    def test_copies_few_states_and_then_no_more(self):
        cache, addresses = GrowingCache(), []
        for _ in range(20):
            cache.update(one := states(torch.tensor([[1]])), one, 0)
            cache.layers[0].FEW_BYTES = 10 * one.nbytes
            addresses.append(cache.layers[0].keys.data_ptr())
        assert len(set(addresses[:10])) > 1
        assert len(set(addresses[10:])) == 1

    def test_does_not_move_what_is_there(self, never_copying):
        cache = GrowingCache()
        one = states(torch.tensor([[1]]))
        cache.update(one, one, 0)
        address = cache.layers[0].keys.data_ptr()
        for _ in range(50):
            cache.update(one, one, 0)
        assert cache.layers[0].keys.data_ptr() == address

    def test_reset_forgets(self):
        cache = GrowingCache()
        one = states(torch.tensor([[1]]))
        cache.update(one, one, 0)
        cache.reset()
        assert cache.get_seq_length() == 0
        keys, _ = cache.update(one, one, 0)
        assert keys.shape[2] == 1


@pytest.mark.parametrize("length", [0, 3])
def test_layers_without_states_are_skipped(length):
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicLayer()]
    cache.layer_class_to_replicate = None
    tokens = torch.arange(1, 6)[None]
    cache.update(states(tokens), states(tokens), 1)
    assert keep_nodes(cache, [2 + length - length], [[0]], 3) == [3]
    assert cache.layers[1].keys.shape[2] == 3


class TestAdoptedLayers:
    def filled(self, length=5):
        layer = DynamicLayer()
        layer.update(states(torch.arange(length)[None]), -states(torch.arange(length)[None]))
        return layer

    def test_grow_without_copying_and_hold_the_same(self, never_copying):
        layer, plain = self.filled(), self.filled()
        GrowingLayer.adopt(layer, max_length=40)
        addresses = set()
        for token in range(5, 40):
            new = states(torch.tensor([[token]]))
            for each in (layer, plain):
                each.update(new, -new)
            addresses.add(layer.keys.data_ptr())
            assert torch.equal(layer.keys, plain.keys)
            assert torch.equal(layer.values, plain.values)
        assert len(addresses) == 1
        assert layer._buffers[0].shape[-2] <= 40 + 64

    def test_have_room_for_what_is_longer_than_was_said(self):
        layer = self.filled()
        GrowingLayer.adopt(layer, max_length=6)
        new = states(torch.arange(100)[None])
        layer.update(new, -new)
        assert layer.keys.shape[-2] == 105

    @pytest.mark.parametrize("copy", [True, False])
    def test_are_plain_again_when_released(self, never_copying, copy):
        layer = self.filled()
        GrowingLayer.adopt(layer, max_length=None)
        layer.update(states(torch.tensor([[7]])), states(torch.tensor([[8]])))
        GrowingLayer.release(layer, copy=copy)
        assert type(layer) is DynamicLayer
        assert set(vars(layer)) == set(vars(self.filled()))
        assert torch.equal(layer.keys, states(torch.tensor([[0, 1, 2, 3, 4, 7]])))
        assert (layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4) is copy
