"""Second turns on a cache that a call has handed back: the head drafts as if it had read the whole text anew."""

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from doubles import inference_tensors, random_draft
from every_decoder import tiny_decoder
from transformers import AutoModelForCausalLM, AutoTokenizer, CompileConfig, DynamicCache, StaticCache

from eagle_hf import EagleDraftModel
from eagle_hf.cli.demo import PROMPTS
from eagle_hf.drafting.drafter import Drafter
from eagle_hf.generation import kept_rows
from eagle_hf.target.forward import cache_argument
from eagle_hf.versions import CACHE, cache_of


ROOT = Path(__file__).parents[2]
NAME = kept_rows._NAME
OPTIONS = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}


def prompts(batch_size: int, length: int = 11, seed: int = 3) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    ids = torch.randint(3, 90, (batch_size, length), generator=torch.Generator().manual_seed(seed))
    for row in range(1, batch_size):
        ids[row, : 2 * row] = 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def next_turn(inputs, output, length: int = 5, seed: int = 5) -> dict[str, torch.Tensor]:
    question = torch.randint(3, 90, (len(output.sequences), length), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([output.sequences, question], 1)
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), new, dtype=torch.long)], 1)
    return {"input_ids": ids, "attention_mask": mask}


def only_new(inputs, cache) -> dict[str, torch.Tensor]:
    return inputs | {"input_ids": inputs["input_ids"][:, cache.get_seq_length() :]}


def make_draft(target, **config):
    draft = random_draft(target, **config)
    draft.generation_config.update(num_assistant_tokens=8, draft_depth=3, draft_width=4)
    draft.generation_config.output_draft_trees = True
    return draft


def first_trees(output, number: int = 1) -> list:
    return [(tree.tokens.tolist(), tree.parents.tolist()) for tree, _ in output.draft_trees[:number]]


def new_tokens(output, inputs) -> list[list[int]]:
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist()


def check_second_turn(target, draft, batch_size=1, is_same=True, cache=None, **options):
    """
    Texts equal those of plain `generate`; the first tree of the second turn is that of a call that reads everything
    anew, and is another where nothing was kept (negative control).
    """
    options = OPTIONS | options
    inputs = prompts(batch_size)
    passed = {} if cache is None else {CACHE: cache}
    first = target.generate(**inputs, **passed, assistant_model=draft, **options)
    second = next_turn(inputs, first)
    anew = target.generate(**second, assistant_model=draft, **options)
    plain = target.generate(**second, **{k: v for k, v in options.items() if not k.startswith("draft_")})
    assert torch.equal(anew.sequences, plain.sequences)
    cache = cache_of(first)
    bare = copy.deepcopy(cache)
    delattr(bare, NAME)
    results = []
    for given, kept in ((second, copy.deepcopy(cache)), (only_new(second, cache), cache), (second, bare)):
        output = target.generate(**given, **{CACHE: kept}, assistant_model=draft, **options)
        assert new_tokens(output, given) == new_tokens(anew, second)
        results.append(first_trees(output))
    if is_same:
        assert results[0] == results[1] == first_trees(anew)
        assert results[2] != first_trees(anew)
    third = next_turn(second, anew, seed=6)
    expected = target.generate(**third, assistant_model=draft, **options)
    for given in (third, only_new(third, cache)):
        kept = copy.deepcopy(cache)
        output = target.generate(**given, **{CACHE: kept}, assistant_model=draft, **options)
        assert new_tokens(output, given) == new_tokens(expected, third)
        assert not is_same or first_trees(output) == first_trees(expected)
    assert not inference_tensors(vars(getattr(cache, NAME).kept[draft][0].rows))


@pytest.mark.parametrize("batch_size", [1, 3], ids=["single", "padded"])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
def test_targets(name, batch_size):
    target = tiny_target(name)
    check_second_turn(target, make_draft(target), batch_size)


@pytest.mark.sweep
@pytest.mark.parametrize("batch_size", [1, 3], ids=["single", "padded"])
@pytest.mark.parametrize(
    "name",
    ["gemma3-mixed", "gpt2-learned-positions", "deepseek-v3-mla", "gpt-oss-sinks", "llama4-chunked", "qwen3-moe"],
)
def test_other_targets(name, batch_size):
    target = tiny_target(name)
    check_second_turn(target, make_draft(target), batch_size)


@pytest.mark.parametrize(
    "config",
    [
        {"eagle_version": 1},
        {"parallel_drafting": True, "mask_token_id": 3},
        {"sliding_window": 8},
        {"num_hidden_layers": 2, "parallel_drafting": True, "mask_token_id": 3},
    ],
    ids=["eagle1", "in parallel", "with a window", "several layers"],
)
def test_heads(config):
    target = tiny_target("llama")
    check_second_turn(target, make_draft(target, **config), 2)


@pytest.mark.parametrize(
    "options",
    [
        {"draft_retrieval": 6},
        {"draft_tree": "static", "draft_tree_paths": [[0], [1], [0, 0], [0, 1]]},
        {"draft_tree": "chain"},
    ],
    ids=lambda options: "-".join(map(str, options.values()))[:12],
)
def test_options(options):
    target = tiny_target("llama")
    check_second_turn(target, make_draft(target), 2, **options)


def test_heads_of_another_dtype_than_the_target():
    target = tiny_target("llama", dtype=torch.float64)
    check_second_turn(target, make_draft(target).float())


@pytest.mark.sweep
def test_compiled_steps():
    target, inputs = tiny_target("llama"), prompts(1)
    draft, cache = make_draft(target), StaticCache(config=target.config, max_cache_len=64)
    config = CompileConfig(mode=None, backend="eager")
    config._compile_all_devices = True
    first = target.generate(**inputs, **{CACHE: cache}, assistant_model=draft, compile_config=config, **OPTIONS)
    second = next_turn(inputs, first)
    output = target.generate(**second, **{CACHE: cache}, assistant_model=draft, compile_config=config, **OPTIONS)
    anew = target.generate(**second, assistant_model=draft, **OPTIONS)
    assert torch.equal(output.sequences, anew.sequences)
    assert first_trees(output) == first_trees(anew)


def test_static_caches():
    target = tiny_target("llama")
    check_second_turn(target, make_draft(target), 2, cache=StaticCache(config=target.config, max_cache_len=64))


@pytest.mark.sweep
def test_targets_with_recurrent_layers_beside_attention():
    target = tiny_decoder("qwen3_next")
    check_second_turn(target, make_draft(target), draft_tree="chain")


def test_nothing_is_kept_with_purely_recurrent_caches():
    """They do not count what they hold: nobody can tell which rows would be whose."""
    target, inputs = tiny_decoder("mamba2"), prompts(1)
    draft, texts = make_draft(target), []
    for assistant in (None, draft):
        drafted = {} if assistant is None else {"assistant_model": draft, "draft_tree": "chain"}
        output = target.generate(**inputs, **OPTIONS, **drafted)
        cache = cache_of(output)
        assert not hasattr(cache, NAME)
        new = {"input_ids": torch.tensor([[output.sequences[0, -1], 7, 9]])}
        texts.append(target.generate(**new, **{cache_argument(target): cache}, **OPTIONS, **drafted).sequences)
    assert torch.equal(texts[0], texts[1])


@pytest.fixture(scope="module")
def target():
    return tiny_target("llama")


def test_what_was_changed_is_not_taken_for_what_was_kept(target):
    """Cropped, extended and reordered caches: the rows of the beginning that is the same, and right texts always."""
    draft, inputs = make_draft(target), prompts(2, 14)
    first = target.generate(**inputs, assistant_model=draft, **OPTIONS)
    kept, length = cache_of(first), cache_of(first).get_seq_length()
    for change in ("crop", "crop and extend", "reorder", "other tokens", "select"):
        cache, ids = copy.deepcopy(kept), next_turn(inputs, first)["input_ids"]
        mask = next_turn(inputs, first)["attention_mask"]
        if "crop" in change:
            cache.crop(-4)
        if change == "crop and extend":
            ids[:, length - 4 : length] = 7
            with torch.no_grad():
                target(ids[:, length - 4 : length], attention_mask=mask[:, :length], **{CACHE: cache})
        elif change == "reorder":
            cache.reorder_cache(torch.tensor([1, 0]))
            ids, mask = ids.flip(0), mask.flip(0)
        elif change == "other tokens":  # a cache that somebody has written into
            for layer in cache.layers:
                layer.keys = layer.keys * 1
        elif change == "select":
            cache.batch_select_indices(torch.tensor([1]))
            ids, mask = ids[1:], mask[1:]
        anew = target.generate(ids, attention_mask=mask, assistant_model=draft, **OPTIONS)
        start, trees = cache.get_seq_length(), []
        for given in (ids, ids[:, start:]):
            used = copy.deepcopy(cache)
            output = target.generate(given, attention_mask=mask, **{CACHE: used}, assistant_model=draft, **OPTIONS)
            assert torch.equal(output.sequences[:, given.shape[1] :], anew.sequences[:, ids.shape[1] :])
            trees.append(first_trees(output))
        # With all ids at hand, what is still the same is used; without them nothing is, as nobody can tell.
        assert (trees[0] == first_trees(anew)) == (change in ("crop", "other tokens"))
        assert trees[1] != first_trees(anew)


def test_turns_without_the_head_and_of_other_heads_in_between(target):
    draft, other, inputs = make_draft(target), make_draft(target, eagle_version=1), prompts(1)
    first = target.generate(**inputs, assistant_model=draft, **OPTIONS)
    second = next_turn(inputs, first)
    cache = cache_of(first)
    for assistant in (None, other):
        output = target.generate(**second, **{CACHE: cache}, assistant_model=assistant, **OPTIONS)
        second = next_turn(second, output)
    kept = getattr(cache, NAME).kept
    assert set(kept) == {draft, other}
    bare = copy.deepcopy(cache)
    delattr(bare, NAME)
    for head in (other, draft):  # each knows the turns that it has seen
        anew = target.generate(**second, assistant_model=head, **OPTIONS)
        outputs = [
            target.generate(**second, **{CACHE: copy.deepcopy(used)}, assistant_model=head, **OPTIONS)
            for used in (cache, bare)
        ]
        assert all(torch.equal(output.sequences, anew.sequences) for output in outputs)
        assert first_trees(outputs[0]) != first_trees(outputs[1])
    stranger = tiny_target("llama", seed=1)  # the cache says nothing to it, but the texts must be its own
    outputs = [
        stranger.generate(**second, **{CACHE: copy.deepcopy(cache)}, assistant_model=assistant, **OPTIONS)
        for assistant in (None, draft)
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    del output, outputs, anew, first, assistant, head, bare
    before = len(kept)
    del other
    gc.collect()
    assert len(kept) == before - 1  # freed with the head


def test_rows_that_end_at_different_times():
    target, inputs = tiny_target("llama"), prompts(3)
    draft = make_draft(target)
    plain = target.generate(**inputs, **OPTIONS).sequences[:, inputs["input_ids"].shape[1] :]
    ends = {"eos_token_id": int(plain[1, 3]), "pad_token_id": 0}
    first = target.generate(**inputs, assistant_model=draft, **OPTIONS | ends)
    assert torch.equal(first.sequences, target.generate(**inputs, **OPTIONS | ends).sequences)
    assert (first.sequences[1] == 0).sum() > 2  # else no row has ended early
    second = next_turn(inputs, first)
    caches = [copy.deepcopy(cache_of(first)) for _ in range(3)]
    texts = [
        target.generate(**second, **{CACHE: caches[0]}, **OPTIONS).sequences,
        target.generate(**second, **{CACHE: caches[1]}, assistant_model=draft, **OPTIONS).sequences,
    ]
    assert torch.equal(texts[0], texts[1])
    new = only_new(second, caches[2])
    text = target.generate(**new, **{CACHE: caches[2]}, assistant_model=draft, **OPTIONS).sequences
    assert torch.equal(text[:, new["input_ids"].shape[1] :], texts[0][:, second["input_ids"].shape[1] :])


@pytest.mark.parametrize("new_tokens", [1, 6], ids=["no tree", "trees"])
def test_a_prefix_that_a_call_has_read_serves_all_its_copies(monkeypatch, target, new_tokens):
    draft, inputs, taken = make_draft(target), prompts(1), []
    begin_with = Drafter.begin_with

    def spy(self, rows, valid):
        taken.append(int(valid.sum()))
        begin_with(self, rows, valid)

    monkeypatch.setattr(Drafter, "begin_with", spy)
    cache = DynamicCache(config=target.config)
    target.generate(**inputs, **{CACHE: cache}, assistant_model=draft, max_new_tokens=new_tokens, do_sample=False)
    cache.crop(-(cache.get_seq_length() - 11)) if cache.get_seq_length() > 11 else None
    for seed in (1, 2):
        question = torch.randint(3, 90, (1, 4), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([inputs["input_ids"], question], 1)
        mask = torch.ones_like(ids)
        anew = target.generate(ids, attention_mask=mask, assistant_model=draft, **OPTIONS)
        used = copy.deepcopy(cache)
        output = target.generate(ids, attention_mask=mask, **{CACHE: used}, assistant_model=draft, **OPTIONS)
        assert torch.equal(output.sequences, anew.sequences)
    assert taken == [10, 10]  # of 11: the token that was read behind the last one is another


def test_a_cache_that_the_user_has_filled_drafts_from_what_the_call_reads(target):
    draft, inputs = make_draft(target), prompts(1)
    cache = DynamicCache(config=target.config)
    with torch.no_grad():
        target(inputs["input_ids"][:, :6], **{CACHE: cache})
    output = target.generate(**inputs, **{CACHE: cache}, assistant_model=draft, **OPTIONS)
    assert torch.equal(output.sequences, target.generate(**inputs, **OPTIONS).sequences)
    (rows, _) = getattr(cache, NAME).kept[draft]
    assert rows.columns[0, 0] == 6


def test_nothing_is_kept_where_nobody_sees_the_cache(target, monkeypatch):
    draft, inputs = make_draft(target), prompts(1)
    monkeypatch.setattr("eagle_hf.generation.kept_rows.keep_rows", lambda *args: pytest.fail("kept"))
    target.generate(**inputs, assistant_model=draft, **OPTIONS | {"return_dict_in_generate": False})
    target.generate(**inputs, **OPTIONS)


def test_it_is_freed_with_the_cache_and_left_out_of_pickles(target):
    draft, inputs = make_draft(target), prompts(1)
    output = target.generate(**inputs, assistant_model=draft, **OPTIONS)
    cache = cache_of(output)
    rows = getattr(cache, NAME).kept[draft][0].rows
    pickled = pickle.dumps(cache)
    assert b"eagle_hf." not in pickled  # can be loaded where nobody has this package
    loaded = pickle.loads(pickled)  # noqa: S301
    second = next_turn(inputs, output)
    texts = [
        target.generate(**second, **{CACHE: used}, assistant_model=draft, **OPTIONS).sequences
        for used in (loaded, copy.deepcopy(cache))
    ]
    assert torch.equal(texts[0], texts[1])
    keys = rows.layers[0][0]
    assert keys.untyped_storage().nbytes() == keys.nbytes  # no view of a larger buffer
    references = [weakref.ref(keys), weakref.ref(rows)]
    gc.disable()
    try:
        del output, cache, rows, keys
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_call_that_fails_leaves_what_was_kept(target):
    draft, inputs = make_draft(target), prompts(1)
    first = target.generate(**inputs, assistant_model=draft, **OPTIONS)
    second, cache = next_turn(inputs, first), cache_of(first)

    class Streamer:
        count = 0

        def put(self, tokens):
            self.count += 1
            if self.count == 4:
                raise RuntimeError("hung up")

        def end(self):
            pass

    with pytest.raises(RuntimeError, match="hung up"):
        target.generate(**second, **{CACHE: cache}, assistant_model=draft, streamer=Streamer(), **OPTIONS)
    cache.crop(second["input_ids"].shape[1] - 1 - cache.get_seq_length())
    output = target.generate(**second, **{CACHE: cache}, assistant_model=draft, **OPTIONS)
    assert torch.equal(output.sequences, target.generate(**second, **OPTIONS).sequences)


@pytest.fixture(scope="module")
def demo():
    target = AutoModelForCausalLM.from_pretrained(ROOT / "hub_cards/demo-llama-10m").eval()
    draft = EagleDraftModel.from_pretrained(ROOT / "hub_cards/EAGLE3-demo-llama-10m")
    return target, draft, AutoTokenizer.from_pretrained(ROOT / "hub_cards/demo-llama-10m")


@pytest.mark.parametrize(
    "follow_up",
    [
        pytest.param("", id="go on"),
        pytest.param("Say it again, please.", id="question", marks=pytest.mark.sweep),
    ],
)
def test_second_turns_draft_as_much_as_calls_that_read_everything_anew(demo, follow_up):
    """Three prompts of the demo; each answer is cut, and goes on in the next call or is asked about."""
    target, draft, tokenizer = demo

    def ids_of(text: str) -> torch.Tensor:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids

    options = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, "assistant_model": draft}
    options |= {"draft_tree": "dynamic", "num_assistant_tokens": 12, "draft_depth": 5, "draft_width": 4}
    gained: dict[str, list[int]] = {"anew": [], "kept": [], "without": []}
    for prompt in PROMPTS[:3]:
        output = target.generate(ids_of(prompt), **options)
        ids = torch.cat([output.sequences, ids_of(follow_up)], dim=1) if follow_up else output.sequences
        bare = copy.deepcopy(cache_of(output))
        delattr(bare, NAME)
        caches = {"anew": {}, "kept": {CACHE: cache_of(output)}, "without": {CACHE: bare}}
        texts = []
        for name, cache in caches.items():
            again = target.generate(ids, **cache, **options)
            gained[name] += again.acceptance_lengths[0]
            texts.append(again.sequences.tolist())
        assert texts[0] == texts[1] == texts[2]
    mean = {name: sum(lengths) / len(lengths) for name, lengths in gained.items()}
    assert mean["kept"] >= 0.9 * mean["anew"]
    assert follow_up or mean["without"] < 0.9 * mean["anew"]  # negative control
