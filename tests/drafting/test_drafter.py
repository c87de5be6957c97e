"""The drafter: exact early stop, order under ties, what the head's cache holds, ragged batches."""

import pytest
import torch
from conftest import golden_draft, use_options

from eagle_hf import DraftOptions
from eagle_hf.drafting import dynamic as dynamic_tree
from eagle_hf.drafting.drafter import Drafter
from eagle_hf.drafting.true_rows import TrueRows
from eagle_hf.fast.compiled_head import choose_drafter


def make_drafter(draft, target, **options) -> Drafter:
    return choose_drafter(draft, DraftOptions(**options), target.get_input_embeddings(), target.get_output_embeddings())


def read(drafter, case, rows=None):
    tensors = case.tensors
    features, tokens = tensors["draft_in.features"], tensors["draft_in.input_ids"]
    positions = torch.arange(tokens.shape[1])[None]
    drafter.read_prompt([features], tokens, positions, None)
    return tensors["root_token"]


def tree_tuple(tree):
    return tree.tokens.tolist(), tree.parents.tolist(), tree.depths.tolist()


def test_early_stop_changes_nothing_and_saves_forwards(golden_target, golden_case, monkeypatch):
    draft, options = golden_draft(golden_case.draft), vars(golden_case.options)
    stopping = make_drafter(draft, golden_target, **options)
    early = stopping.grow(read(stopping, golden_case), 100)
    monkeypatch.setattr(dynamic_tree, "_is_complete", lambda *args: False)
    complete = make_drafter(draft, golden_target, **options)
    full = complete.grow(read(complete, golden_case), 100)
    assert tree_tuple(early) == tree_tuple(full)
    assert complete.num_forwards == 1 + golden_case.depth
    assert stopping.num_forwards <= complete.num_forwards


def test_early_stop_happens_on_a_confident_draft(golden_target):
    draft = golden_draft("A_eagle3")
    draft.lm_head.weight.data *= 4
    drafter = make_drafter(draft, golden_target, num_assistant_tokens=4, draft_depth=8, draft_width=4)
    torch.manual_seed(0)
    drafter.read_prompt([torch.randn(1, 5, 192)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
    drafter.grow(torch.tensor([3]), 100)
    assert drafter.num_forwards < 8


@pytest.mark.parametrize("threshold", [0.001, 0.02, 0.1, 0.5])
def test_a_threshold_leaves_out_exactly_the_less_probable_nodes(golden_target, golden_case, threshold):
    options = vars(golden_case.options)
    draft = golden_draft(golden_case.draft)
    whole = make_drafter(draft, golden_target, **options)
    full = whole.grow(read(whole, golden_case), 100)
    pruning = make_drafter(draft, golden_target, **(options | {"draft_threshold": threshold}))
    pruned = pruning.grow(read(pruning, golden_case), 100)
    likely = int((full.scores[0].exp() >= threshold).sum())
    if likely == 1:
        assert pruned.num_nodes == 1  # the root alone: a plain step
    else:
        nodes = zip(full.tokens[0].tolist(), full.depths[0].tolist(), full.scores[0].tolist(), strict=True)
        expected = [node[:2] for node in nodes if node[2] >= torch.tensor(threshold).log()]
        assert list(zip(pruned.tokens[0].tolist(), pruned.depths[0].tolist(), strict=True)) == expected
    assert pruning.num_forwards <= whole.num_forwards


def test_a_threshold_keeps_broken_heads_visible(golden_target):
    draft = golden_draft("A_eagle3")
    draft.lm_head.weight.data.fill_(torch.nan)
    drafter = make_drafter(draft, golden_target, draft_threshold=0.1, draft_depth=3, draft_width=2)
    drafter.read_prompt([torch.randn(1, 5, 192)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
    tree = drafter.grow(torch.tensor([3]), 100)
    assert tree.num_nodes == 2
    assert tree.scores[0, 1] == -torch.inf


@pytest.mark.parametrize("width", [1, 3, 10])
def test_tied_scores_never_orphan_a_child(golden_target, width):
    """All logits equal: every level ties. Half-precision scores of the reference tie as well, and orphan children."""
    draft = golden_draft("A_eagle3")
    draft.lm_head.weight.data.zero_()
    drafter = make_drafter(draft, golden_target, num_assistant_tokens=25, draft_depth=4, draft_width=width)
    drafter.read_prompt([torch.randn(1, 5, 192)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
    tree = drafter.grow(torch.tensor([3]), 100)
    parents, depths = tree.parents[0].tolist(), tree.depths[0].tolist()
    for node in range(1, tree.num_nodes):
        assert parents[node] < node
        assert depths[node] == depths[parents[node]] + 1
    assert tree.num_nodes == min(26, 1 + width + 3 * width**2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_float32_and_no_child_is_orphaned_in_half_precision(golden_target, golden_case, dtype):
    draft = golden_draft(golden_case.draft).to(dtype)
    if draft.lm_head is not None:
        draft.lm_head.weight.data *= 3
    embed, head = golden_target.get_input_embeddings(), golden_target.get_output_embeddings()
    drafter = choose_drafter(draft, golden_case.options, embed, lambda hidden: head(hidden.float()).to(dtype))
    tree = drafter.grow(read(drafter, golden_case), 100)
    assert tree.scores.dtype == torch.float32
    scores, parents, depths = tree.scores[0], tree.parents[0], tree.depths[0]
    assert (scores[1:] <= scores[parents[1:]]).all()
    assert (depths[1:] == depths[parents[1:]] + 1).all()


@pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
@pytest.mark.parametrize("name", ["A_eagle3", "A_eagle1"])
def test_growing_leaves_the_cache_of_true_features_as_it_was(golden_target, name, kind):
    drafter = make_drafter(golden_draft(name), golden_target, draft_tree=kind, num_assistant_tokens=12, draft_width=4)
    width = drafter.head.draft.config.num_features * 64
    torch.manual_seed(0)
    drafter.read_prompt([torch.randn(1, 5, width)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
    before = drafter._rows.cache.layers[0].keys.clone()
    first = drafter.grow(torch.tensor([3]), 100)
    assert torch.equal(drafter._rows.cache.layers[0].keys, before)
    assert tree_tuple(drafter.grow(torch.tensor([3]), 100)) == tree_tuple(first)


@pytest.mark.parametrize("kind", ["dynamic", "static", "chain"])
@pytest.mark.parametrize("name", ["A_eagle3", "A_eagle3_narrow", "A_eagle1"])
def test_ragged_rows_draft_as_if_they_were_alone(golden_target, name, kind):
    draft, target = golden_draft(name), golden_target
    options = {"draft_tree": kind, "num_assistant_tokens": 14, "draft_depth": 4, "draft_width": 4}
    width = draft.config.num_features * 64
    generator = torch.Generator().manual_seed(0)
    lengths, steps = (7, 3, 5), ((1, 4, 2), (3, 1, 1), (2, 0, 5))
    features = [torch.randn(1, length + 16, width, generator=generator) for length in lengths]
    tokens = [torch.randint(0, 320, (1, length + 16), generator=generator) for length in lengths]
    roots = torch.tensor([3, 4, 5])

    def batched():
        drafter = make_drafter(draft, target, **options)
        longest = max(lengths)
        mask = torch.tensor([[False] * (longest - n) + [True] * n for n in lengths])
        pad = [longest - n for n in lengths]

        def left_padded(rows):  # rows of shape (1, more than needed, size)
            pads = zip(rows, lengths, pad, strict=True)
            return torch.cat([torch.nn.functional.pad(row[:, :n], (0, 0, p, 0)) for row, n, p in pads])

        drafter.read_prompt(
            [left_padded(features)],
            left_padded([row[..., None] for row in tokens]).squeeze(-1),
            (mask.long().cumsum(1) - 1).clamp(min=0),
            mask,
        )
        yield drafter.grow(roots, 100)
        done = list(lengths)
        for counts in steps:
            new = max(counts)
            at = [slice(start, start + new) for start in done]
            drafter.read_accepted(
                torch.cat([f[:, s] for f, s in zip(features, at, strict=True)]),
                torch.cat([t[:, s] for t, s in zip(tokens, at, strict=True)]),
                counts,
            )
            done = [d + count for d, count in zip(done, counts, strict=True)]
            yield drafter.grow(roots, 100)

    def alone(row):
        drafter = make_drafter(draft, target, **options)
        done = lengths[row]
        drafter.read_prompt([features[row][:, :done]], tokens[row][:, :done], torch.arange(done)[None], None)
        yield drafter.grow(roots[row : row + 1], 100)
        for counts in steps:
            if counts[row]:
                s = slice(done, done + counts[row])
                drafter.read_accepted(features[row][:, s], tokens[row][:, s], counts[row : row + 1])
                done += counts[row]
            yield drafter.grow(roots[row : row + 1], 100)

    singles = [list(alone(row)) for row in range(3)]
    for step, tree in enumerate(batched()):
        for row in range(3):
            if step and steps[step - 1][row] == 0:
                continue  # a row without news is one that has finished; what it drafts is never used
            single = singles[row][step]
            assert tree.tokens[row].tolist() == single.tokens[0].tolist()
            assert tree.parents[row].tolist() == single.parents[0].tolist()
            torch.testing.assert_close(tree.scores[row], single.scores[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 4])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(golden_target, monkeypatch, chunk, is_padded, window):
    """As one tensor or as separate hidden states; the tree and the cache are the same to rounding."""
    draft = golden_draft("A_eagle3")
    draft.config.sliding_window = window
    draft.layers[0].has_window = window is not None
    torch.manual_seed(0)
    features, tokens = torch.randn(2, 10, 192), torch.randint(0, 320, (2, 10))
    mask = torch.ones(2, 10, dtype=torch.bool)
    if is_padded:
        mask[1, :5] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    drafters, caches, seen = [], [], []
    step = draft.step

    def spy(hidden, embeds, rotary, attention_mask, cache, *args, **kwargs):
        seen.append((attention_mask, cache))
        return step(hidden, embeds, rotary, attention_mask, cache, *args, **kwargs)

    monkeypatch.setattr(draft, "step", spy)
    for size in (chunk, 1024):
        monkeypatch.setattr(TrueRows, "PROMPT_CHUNK", size)
        drafter = make_drafter(draft, golden_target, num_assistant_tokens=9, draft_width=3)
        states = features.split(64, dim=-1) if size == chunk else [features]
        drafter.read_prompt(states, tokens, positions, mask if is_padded else None)
        if size == chunk:
            assert max(1 if m is None else m.shape[2] for m, _ in seen) <= chunk
        drafters.append(drafter)
        caches.append(seen[-1][1])
    chunked, whole = drafters
    assert chunked.num_forwards == -(-10 // chunk)
    torch.testing.assert_close(chunked._rows.last_hidden, whole._rows.last_hidden, atol=1e-4, rtol=1e-4)
    real = mask[:, None, :, None]
    for name in ("keys", "values"):
        got, expected = (getattr(cache.layers[0], name) * real for cache in caches)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    roots = torch.tensor([3, 4])
    assert tree_tuple(chunked.grow(roots, 100)) == tree_tuple(whole.grow(roots, 100))


def test_depth_is_limited_to_what_can_be_used(golden_target):
    for kind in ("dynamic", "static", "chain"):
        drafter = make_drafter(golden_draft("A_eagle3"), golden_target, draft_tree=kind)
        drafter.read_prompt([torch.randn(1, 5, 192)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
        for max_depth in (0, 1, 2, 3):
            tree = drafter.grow(torch.tensor([3]), max_depth)
            assert int(tree.depths.max()) == max_depth


def test_drafting_does_not_touch_the_global_generator(golden_target):
    drafter = make_drafter(golden_draft("A_eagle3"), golden_target)
    state = torch.get_rng_state()
    drafter.read_prompt([torch.zeros(1, 5, 192)], torch.zeros(1, 5, dtype=torch.long), torch.arange(5)[None], None)
    drafter.grow(torch.tensor([3]), 100)
    assert torch.equal(state, torch.get_rng_state())


def test_a_stopped_drafter_leaves_plain_decoding(golden_target):
    drafter = make_drafter(golden_draft("A_eagle3"), golden_target)
    drafter.read_prompt([torch.zeros(1, 5, 192)], torch.zeros(1, 5, dtype=torch.long), torch.arange(5)[None], None)
    drafter.stop()
    assert drafter.grow(torch.tensor([3]), 100).num_nodes == 1


def test_heads_with_length_dependent_rotary_embeddings_can_be_used(golden_target):
    """`dynamic` cannot be tabulated: its frequencies depend on the longest position of a forward."""
    draft = golden_draft("A_eagle3")
    draft.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    draft = type(draft)(draft.config).eval()
    use_options(draft, num_assistant_tokens=5)
    prompt = torch.arange(3, 12)[None]
    plain = golden_target.generate(prompt, max_new_tokens=20, do_sample=False)
    ours = golden_target.generate(prompt, max_new_tokens=20, do_sample=False, assistant_model=draft)
    assert torch.equal(plain, ours)
    draft.rotary_emb.inv_freq.clone().requires_grad_()  # no inference tensor was left behind


def test_features_do_not_pile_up_where_no_tree_is_grown(golden_target):
    drafter = make_drafter(golden_draft("A_eagle3"), golden_target, num_assistant_tokens=4)
    width = drafter.head.draft.config.num_features * 64
    drafter.read_prompt([torch.randn(1, 3, width)], torch.randint(0, 320, (1, 3)), torch.arange(3)[None], None)
    for _ in range(2 * drafter.MAX_UNREAD + 5):
        drafter.read_accepted(torch.randn(1, 1, width), torch.zeros(1, 1, dtype=torch.long), [1])
        assert len(drafter._unread) <= drafter.MAX_UNREAD
        assert drafter.grow(torch.tensor([3]), 0).num_nodes == 1
    assert drafter.grow(torch.tensor([3]), 4).num_nodes > 1


@pytest.mark.parametrize("batch", [1, 3])
def test_reading_late_and_all_at_once_changes_no_tree(golden_target, batch):
    draft = golden_draft("A_eagle3")
    generator = torch.Generator().manual_seed(0)
    width = draft.config.num_features * 64
    prompt, ids = torch.randn(batch, 5, width, generator=generator), torch.randint(0, 320, (batch, 5))
    parts = []
    for new_len in (3, 1, 2):
        counts = [new_len] if batch == 1 else [new_len, 1, max(new_len - 1, 1)]
        parts.append(
            (torch.randn(batch, new_len, width, generator=generator), torch.randint(0, 320, (batch, new_len)), counts)
        )
    trees = []
    for is_late in (False, True):
        drafter = make_drafter(draft, golden_target, num_assistant_tokens=12, draft_width=4, draft_depth=4)
        drafter.read_prompt([prompt], ids, torch.arange(5).expand(batch, -1), None)
        for part in parts:
            drafter.read_accepted(*part)
            if not is_late:
                tree = drafter.grow(torch.arange(batch), 100)
        trees.append(drafter.grow(torch.arange(batch), 100) if is_late else tree)
    assert torch.equal(trees[0].tokens, trees[1].tokens)
    torch.testing.assert_close(trees[0].scores, trees[1].scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("num_unread", [2, Drafter.MAX_UNREAD + 1])
def test_a_deferred_prompt_is_learned_before_the_first_tree(golden_target, batch, num_unread):
    """And not earlier: texts that never draft need no forward of the head. All that waits is read in one."""
    draft = golden_draft("A_eagle3")
    generator = torch.Generator().manual_seed(0)
    width = draft.config.num_features * 64
    prompt, ids = torch.randn(batch, 5, width, generator=generator), torch.randint(0, 320, (batch, 5))
    new = torch.randn(num_unread, batch, 1, width, generator=generator)
    trees = []
    for defers in (False, True):
        drafter = make_drafter(draft, golden_target, num_assistant_tokens=12, draft_width=4, draft_depth=4)
        read = drafter.defer_prompt if defers else drafter.read_prompt
        read([prompt], ids, torch.arange(5).expand(batch, -1), None)
        for index, features in enumerate(new):
            drafter.read_accepted(features, torch.ones(batch, 1, dtype=torch.long), [1] * batch)
            overflowed = index == Drafter.MAX_UNREAD
            assert drafter.num_forwards == (2 if overflowed else 0 if defers else 1)
        trees.append(drafter.grow(torch.arange(batch), 2))
        assert drafter.num_forwards == 3 + (num_unread > Drafter.MAX_UNREAD)  # prompt, what waited, one level
    assert torch.equal(trees[0].tokens, trees[1].tokens)
    assert torch.equal(trees[0].scores, trees[1].scores)


@pytest.mark.parametrize("is_broken", [False, True], ids=["sound", "broken"])
def test_a_broken_head_stops_by_itself_before_its_second_tree(golden_target, is_broken):
    draft = golden_draft("A_eagle3")
    if is_broken:
        draft.lm_head.weight.data.fill_(torch.nan)
    drafter = make_drafter(draft, golden_target, num_assistant_tokens=6, draft_depth=3, draft_width=2)
    drafter.read_prompt([torch.randn(1, 5, 192)], torch.randint(0, 320, (1, 5)), torch.arange(5)[None], None)
    assert drafter.grow(torch.tensor([3]), 100).num_nodes > 1
    assert (drafter.grow(torch.tensor([3]), 100).num_nodes == 1) == is_broken
    assert drafter.is_stopped == is_broken
    assert (drafter.rows(reads_prompt=True) is None) == is_broken  # nothing to begin another call with
