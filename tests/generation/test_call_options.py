"""Draft options of a single call: as keywords and in its generation config; only what its caller wrote counts."""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft
from transformers import GenerationConfig, pipeline

import eagle_hf
from eagle_hf import DraftOptions
from eagle_hf.draft_options import is_draft_option, written_options
from eagle_hf.generation.output import History


PROMPT = torch.tensor([[5, 17, 33, 8, 61]])
OWN = 7  # nodes that the head drafts by itself


@pytest.fixture(scope="module")
def target():
    return tiny_target("llama")


@pytest.fixture
def draft(target):
    return use_options(random_draft(target), num_assistant_tokens=OWN, output_draft_trees=True)


def generate(target, draft, prompt=PROMPT, **kwargs):
    """A greedy text, which is compared with plain `generate`, and what came with it."""
    torch.manual_seed(0)
    config = {"max_new_tokens": 24, "eos_token_id": None, "return_dict_in_generate": True, "pad_token_id": 0}
    settings = {"do_sample": False} | kwargs
    if (passed := settings.pop("generation_config", None)) is not None:
        passed.update(**config, do_sample=settings.pop("do_sample"))
        config = {"generation_config": passed}
    output = target.generate(prompt, **config, **settings, **({} if draft is None else {"assistant_model": draft}))
    plain_settings = {k: v for k, v in settings.items() if not is_draft_option(k)}
    torch.manual_seed(0)
    plain = target.generate(prompt, assistant_model=None, **config, **plain_settings)
    assert torch.equal(output.sequences, plain.sequences)
    return output


def drafted(output) -> int:
    """Nodes below the root of the largest tree."""
    return max(tree.num_nodes for tree, _ in output.draft_trees) - 1


def test_a_call_that_says_nothing_drafts_the_heads_tree(target, draft):
    assert drafted(generate(target, draft)) == OWN
    assert drafted(generate(target, draft, generation_config=GenerationConfig())) == OWN


@pytest.mark.parametrize("number", [3, 20, 59])  # 20 is what `transformers` fills in, 59 our own default
def test_a_call_that_says_a_number_drafts_that_many(tmp_path, target, draft, number):
    before = draft.generation_config.to_json_string(use_diff=False)
    assert drafted(generate(target, draft, num_assistant_tokens=number)) == number
    config = GenerationConfig(num_assistant_tokens=number)
    assert drafted(generate(target, draft, generation_config=copy.deepcopy(config))) == number
    config.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert drafted(generate(target, draft, generation_config=loaded)) == number
    assert draft.generation_config.to_json_string(use_diff=False) == before
    assert drafted(generate(target, draft)) == OWN


def test_a_number_of_nodes_is_a_choice_where_nobody_has_chosen_a_tree(target, draft):
    draft.generation_config = DraftOptions.open_generation_config()  # on a CPU: sized by measurement
    output = generate(target, draft, num_assistant_tokens=20, output_draft_trees=True)
    assert drafted(output) == 20
    assert output.tree_sizing is None
    assert generate(target, draft).tree_sizing is not None  # negative control
    draft.generation_config.draft_tree = "auto"  # chosen: the number is a bound
    assert generate(target, draft, num_assistant_tokens=20).tree_sizing is not None


@pytest.mark.parametrize("form", ["keywords", "config"])
def test_every_option_holds_for_the_call(target, draft, form):
    draft.generation_config.output_draft_trees = False

    def trees(**options):
        if form == "config":
            options = {"generation_config": GenerationConfig(**options)}
        return [tree for tree, _ in generate(target, draft, **options).draft_trees]

    chain = trees(draft_tree="chain", num_assistant_tokens=11, output_draft_trees=True)
    assert {int(tree.depths.max()) for tree in chain[:1]} == {11}
    assert all(int(tree.depths.max()) + 1 == tree.num_nodes for tree in chain)
    short = trees(draft_tree="chain", num_assistant_tokens=11, draft_depth=4, output_draft_trees=True)
    assert max(tree.max_depth for tree in short) == 4
    narrow = trees(draft_width=1, draft_depth=5, output_draft_trees=True)
    assert max(tree.num_nodes for tree in narrow) == 6
    static = trees(draft_tree="static", draft_tree_paths=[[0], [1], [0, 0]], output_draft_trees=True)
    assert max(tree.num_nodes for tree in static) == 4
    unsure = trees(draft_threshold=0.99, output_draft_trees=True)
    assert min(tree.num_nodes for tree in unsure) < 1 + OWN
    looked_up = trees(draft_retrieval=9, output_draft_trees=True)
    assert max(tree.num_nodes for tree in looked_up) > 1 + OWN
    assert generate(target, draft).draft_trees is None


def test_keywords_come_before_the_calls_config_and_that_before_the_heads(target, draft):
    config = GenerationConfig(num_assistant_tokens=5, draft_depth=2)
    assert drafted(generate(target, draft, generation_config=config, num_assistant_tokens=3)) == 3
    output = generate(target, draft, generation_config=GenerationConfig(num_assistant_tokens=5, draft_depth=2))
    assert drafted(output) == 5
    assert max(tree.max_depth for tree, _ in output.draft_trees) == 2
    assert drafted(generate(target, draft, num_assistant_tokens=None, draft_tree=None)) == OWN  # left open


def test_what_the_targets_own_config_says_was_not_written_for_this_head(target, draft):
    own = target.generation_config
    target.generation_config = copy.deepcopy(own)
    target.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0.9)
    target.generation_config.draft_tree = "chain"
    try:
        assert drafted(generate(target, draft)) == OWN
        copied = copy.deepcopy(target.generation_config)
        assert drafted(generate(target, draft, generation_config=copied)) == OWN
        copied.num_assistant_tokens = 3
        assert drafted(generate(target, draft, generation_config=copied)) == 3
        assert drafted(generate(target, draft, generation_config=GenerationConfig(num_assistant_tokens=4))) == 4
        assert drafted(generate(target, draft, num_assistant_tokens=4)) == 4
    finally:
        target.generation_config = own


@pytest.mark.parametrize("form", ["keyword", "call's config", "head's config", "attached", "decode"])
def test_the_words_of_transformers_mean_ours_where_somebody_wrote_them(target, draft, form):
    """`prompt_lookup_num_tokens` adds looked-up branches, the threshold leaves out unlikely nodes."""

    def trees(**written):
        if form == "head's config":
            draft.generation_config = copy.deepcopy(own)
            draft.generation_config.update(**written)
            return generate(target, draft).draft_trees
        if form == "call's config":
            return generate(target, draft, generation_config=GenerationConfig(**written)).draft_trees
        if form == "keyword":
            return generate(target, draft, **written).draft_trees
        options = {"max_new_tokens": 24, "eos_token_id": None, "return_dict_in_generate": True, "do_sample": False}
        if form == "decode":
            options |= {"custom_generate": eagle_hf.decode, "eagle_draft": draft}
        output = target.generate(PROMPT, **options, **written)
        assert torch.equal(output.sequences, generate(target, None).sequences)
        return output.draft_trees

    own = copy.deepcopy(draft.generation_config)
    own.draft_threshold, own.draft_retrieval = 0.0, 0  # as they are in saved heads
    if form == "attached":
        eagle_hf.attach(target, draft)
    try:
        looked_up = trees(prompt_lookup_num_tokens=9)
        assert max(tree.num_nodes for tree, _ in looked_up) > 1 + OWN
        assert min(tree.num_nodes for tree, _ in trees(assistant_confidence_threshold=0.99)) < 1 + OWN
        # A negative control, and that the same value twice is no contradiction.
        assert max(tree.num_nodes for tree, _ in trees(prompt_lookup_num_tokens=None)) == 1 + OWN
        assert max(tree.num_nodes for tree, _ in trees(prompt_lookup_num_tokens=9, draft_retrieval=9)) > 1 + OWN
        with pytest.raises(ValueError, match="`draft_retrieval=3` and `prompt_lookup_num_tokens=9`, two words for one"):
            trees(prompt_lookup_num_tokens=9, draft_retrieval=3)
        with pytest.raises(ValueError, match="`draft_threshold=0.5` and `assistant_confidence_threshold=0.2`"):
            trees(assistant_confidence_threshold=0.2, draft_threshold=0.5)
        with pytest.raises(ValueError, match="`assistant_confidence_threshold=1.5`, which means `draft_threshold`"):
            trees(assistant_confidence_threshold=1.5)
    finally:
        eagle_hf.detach(target)


def test_a_threshold_that_transformers_filled_in_was_written_by_nobody(target, draft):
    filled, _ = target._prepare_generation_config(None)
    assert filled.assistant_confidence_threshold == 0.4  # else there is nothing to tell apart
    assert written_options({}, filled, target.generation_config) == {}
    assert written_options({"assistant_confidence_threshold": 0.4}, filled, None) == {"draft_threshold": 0.4}
    assert DraftOptions.from_generation_config(filled).draft_threshold == 0
    assert written_options({}, GenerationConfig(assistant_confidence_threshold=0.4), None) == {"draft_threshold": 0.4}


def test_looking_up_that_the_targets_own_config_asks_for_was_not_written_for_a_passed_head(target, draft):
    own = target.generation_config
    target.generation_config = copy.deepcopy(own)
    target.generation_config.update(prompt_lookup_num_tokens=9, assistant_confidence_threshold=0.99)
    try:
        assert drafted(generate(target, draft)) == OWN
        copied = copy.deepcopy(target.generation_config)
        assert drafted(generate(target, draft, generation_config=copied)) == OWN
        assert drafted(generate(target, draft, prompt_lookup_num_tokens=9)) > OWN
    finally:
        target.generation_config = own


def test_a_config_that_transformers_has_filled_says_what_differs_from_its_defaults(target):
    filled, _ = target._prepare_generation_config(None)
    assert filled.num_assistant_tokens == 20  # else there is nothing to tell apart
    assert written_options({}, filled, target.generation_config) == {}
    assert written_options({"num_assistant_tokens": 20}, filled, None) == {"num_assistant_tokens": 20}
    filled.num_assistant_tokens, filled.draft_width = 21, 2
    assert written_options({}, filled, target.generation_config) == {"num_assistant_tokens": 21, "draft_width": 2}


@pytest.mark.parametrize("attached", [False, True], ids=["passed", "attached"])
def test_attached_heads_partials_and_pipelines(monkeypatch, target, draft, attached):
    tokenizer, sizes = letter_tokenizer(), []
    add = History.add
    monkeypatch.setattr(
        History, "add", lambda self, tree, *args: (sizes.append(tree.num_nodes - 1), add(self, tree, *args))
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # what a pipeline compares
        setattr(draft.config, name, getattr(target.config, name))
    if attached:
        eagle_hf.attach(target, draft)
    try:
        passed = {} if attached else {"assistant_model": draft}
        partial = functools.partial(target.generate, num_assistant_tokens=20, **passed)
        options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
        assert drafted(partial(PROMPT, **options)) == 20
        assert drafted(partial(PROMPT, **options, num_assistant_tokens=3)) == 3

        pipe = pipeline("text-generation", target, tokenizer=tokenizer, **passed)
        for said, number in (
            ({}, OWN),
            ({"num_assistant_tokens": 20}, 20),
            ({"draft_tree": "chain", "draft_depth": 3}, 3),
        ):
            sizes.clear()
            text = pipe("abc", max_new_tokens=8, do_sample=False, **said)
            assert max(sizes) == number
            assert pipe("abc", max_new_tokens=8, do_sample=False, assistant_model=None) == text
    finally:
        eagle_hf.detach(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_widht": 3}, r"got unknown draft options \['draft_widht'\]. Did you mean `draft_width`\?"),
        ({"draft_model": 3}, r"got unknown draft options \['draft_model'\]"),
        ({"draft_tree": "bush"}, "must be one of dynamic, auto, static, chain, got 'bush'"),
        ({"num_assistant_tokens": 0}, "must be a positive integer, got 0"),
        ({"draft_threshold": 1.5}, "from 0 to below 1"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(monkeypatch, target, draft, options, message):
    monkeypatch.setattr(type(target), "forward", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(ValueError, match=message):
        target.generate(PROMPT, assistant_model=draft, max_new_tokens=4, **options)
    in_config = message.replace("got unknown", "has unknown")
    with pytest.raises(ValueError, match=in_config):
        target.generate(PROMPT, assistant_model=draft, generation_config=GenerationConfig(**options))
    eagle_hf.attach(target, draft)
    try:
        with pytest.raises(ValueError, match=message):
            target.generate(PROMPT, max_new_tokens=4, **options)
    finally:
        eagle_hf.detach(target)


def test_options_without_a_head_are_nobodys(target):
    with pytest.raises(ValueError, match="draft_tree"):
        target.generate(PROMPT, max_new_tokens=4, draft_tree="chain")


def test_two_threads_with_different_options_on_one_head(target, draft):
    def run(number):
        return [drafted(target.generate(
            PROMPT, assistant_model=draft, max_new_tokens=10, do_sample=False, eos_token_id=None,
            num_assistant_tokens=number, return_dict_in_generate=True,
        )) for _ in range(4)]  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (3, 20))) == [[3] * 4, [20] * 4]


@pytest.mark.parametrize(
    "options", [{"draft_tree": "chain", "num_assistant_tokens": 4}, {"draft_retrieval": 6}], ids=repr
)
def test_with_sampling_in_batches(target, draft, options):
    prompts = torch.tensor([[0, 0, 5, 17, 33], [9, 5, 17, 9, 5]])
    mask = (prompts > 0).long()
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 1.1}):
        generate(target, draft, prompts, attention_mask=mask, **sampling, **options)


def test_heads_that_draft_in_parallel(target):
    draft = random_draft(target, parallel_drafting=True, mask_token_id=3)
    for number in (2, 20):
        output = generate(target, draft, num_assistant_tokens=number, output_draft_trees=True)
        assert drafted(output) == number


@pytest.mark.parametrize(("name", "value"), [("assistant_ensemble_weight", 0.5), ("speculation_type", "dflash")])
def test_other_ways_to_verify_are_refused_and_not_dropped(target, draft, name, value):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this transformers does not know the option")
    with pytest.raises(ValueError, match=f"`{name}`, which asks for another way"):
        generate(target, draft, **{name: value})


def test_a_call_of_an_attached_target_that_brings_a_head_of_its_own_gets_no_warning(target, draft, caplog):
    eagle_hf.attach(target, draft)
    try:
        text = target.generate(
            PROMPT, max_new_tokens=8, do_sample=False, custom_generate=eagle_hf.decode, eagle_draft=draft
        )
    finally:
        eagle_hf.detach(target)
    assert torch.equal(text, target.generate(PROMPT, max_new_tokens=8, do_sample=False))
    assert not [record for record in caplog.records if "attached" in record.getMessage()]
