import pytest
from transformers import GenerationConfig

from eagle_hf import DraftOptions
from eagle_hf.draft_options import EAGLE1_TREE_PATHS


def test_defaults_are_the_authors():
    options = DraftOptions()
    assert (options.draft_tree, options.num_assistant_tokens, options.draft_depth, options.draft_width) == (
        "dynamic", 59, 8, 10,
    )  # fmt: skip
    assert len(EAGLE1_TREE_PATHS) == 25


def test_they_live_in_the_generation_config_and_are_saved_with_it(tmp_path):
    options = DraftOptions("static", draft_tree_paths=[[0], [1], [0, 2]])
    options.to_generation_config().save_pretrained(tmp_path)
    read_back = DraftOptions.from_generation_config(GenerationConfig.from_pretrained(tmp_path))
    assert read_back.static_paths == options.static_paths == [(0,), (1,), (0, 2)]


def test_fields_that_are_not_set_keep_their_defaults():
    assert DraftOptions.from_generation_config(GenerationConfig(draft_depth=3)) == DraftOptions(draft_depth=3)


@pytest.mark.parametrize(
    ("device_type", "expected"), [("cpu", "auto"), ("cuda", "dynamic"), ("mps", "dynamic"), (None, "dynamic")]
)
def test_a_tree_that_nobody_chose_is_sized_where_more_nodes_take_longer(tmp_path, device_type, expected):
    DraftOptions.open_generation_config().save_pretrained(tmp_path)
    for config in (GenerationConfig.from_pretrained(tmp_path), GenerationConfig()):
        options = DraftOptions.from_generation_config(config, device_type)
        assert options == DraftOptions(draft_tree=expected)
    for kind in ("dynamic", "auto", "static", "chain"):
        config = DraftOptions(draft_tree=kind).to_generation_config()
        assert DraftOptions.from_generation_config(config, device_type).draft_tree == kind


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draft_retrieval": -1}, "must be 0 or a positive integer, got -1"),
        ({"draft_coupling": "yes"}, "`draft_coupling` must be True or False, got 'yes'"),
        ({"draft_tree": "binary"}, "must be one of dynamic, auto, static, chain, got 'binary'"),
        ({"num_assistant_tokens": 0}, "`num_assistant_tokens` must be a positive integer, got 0"),
        ({"draft_depth": 2.5}, "`draft_depth` must be a positive integer, got 2.5"),
        ({"draft_width": True}, "`draft_width` must be a positive integer"),
        ({"draft_threshold": 1.0}, "`draft_threshold` must be a number from 0 to below 1, got 1.0"),
        ({"draft_threshold": -0.1}, "`draft_threshold` must be a number"),
        ({"draft_tree_paths": [[0], [1, 0]]}, r"\[1, 0\] without its parent \[1\]"),
        ({"draft_tree_paths": []}, "non-empty lists"),
        ({"draft_tree_paths": [[-1]]}, "non-empty lists"),
    ],
)
def test_impossible_trees_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DraftOptions(**fields)


def test_misspelt_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown draft options \['draft_dept'\]"):
        DraftOptions.from_generation_config(GenerationConfig(draft_dept=3))


def test_a_chain_of_the_same_options():
    assert DraftOptions(draft_tree="static", draft_depth=5).as_chain() == DraftOptions(
        draft_tree="chain", draft_depth=5
    )
    sized = DraftOptions(draft_tree="auto", draft_depth=5).as_chain()
    assert (sized.draft_tree, sized.draft_width, sized.draft_depth) == ("auto", 1, 5)
