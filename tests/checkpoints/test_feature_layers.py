"""Which hidden states a head reads, in both conventions."""

import pytest
from layouts import FLAT, dense_head, write_head

from eagle_hf import EagleConfig, EagleDraftModel
from eagle_hf.checkpoints.feature_layers import read_feature_layers, to_layer_outputs


def inside(*ids):
    return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(ids)}}


def top_level(*ids):
    return {"eagle_aux_hidden_state_layer_ids": list(ids)}


@pytest.mark.parametrize(
    ("config", "num_layers", "expected"),
    [
        ({}, 32, [2, 16, 29]),
        (top_level(2, 16, 29), 32, [2, 16, 29]),
        (top_level(1, 23, 44), 48, [1, 23, 44]),
        (inside(1, 15, 28), 32, [2, 16, 29]),
        (inside(1, 29, 57), 61, [2, 30, 58]),
        (inside(1, 17, 33), 36, [2, 18, 34]),
        (inside(24, 30, 36), 36, [24, 30, 36]),  # the last boundary
        (inside(2, 30, 58), 61, [2, 30, 58]),  # does not start with 1
        (inside(1, 17, 36), 36, [1, 17, 36]),  # starts with 1, but no layer has the number 36
        (inside(1, 17, 35), 36, [2, 18, 36]),
        (top_level(2, 4, 5) | inside(1, 3, 4), 8, [2, 4, 5]),
        (top_level(4, 6, 8) | inside(3, 5, 7), 8, [4, 6, 8]),
    ],
)
def test_lists_are_resolved_to_entries_of_hidden_states(tmp_path, config, num_layers, expected):
    draft = EagleDraftModel.from_pretrained(write_head(tmp_path, FLAT | config, dense_head()))
    assert draft.config.resolve_feature_layer_ids(num_layers) == expected
    again = EagleConfig.from_dict(draft.config.to_dict())
    assert again.resolve_feature_layer_ids(num_layers) == expected


def test_the_user_has_the_last_word(tmp_path):
    folder = write_head(tmp_path, FLAT | inside(1, 3, 4), dense_head())
    draft = EagleDraftModel.from_pretrained(folder, feature_layer_ids=[1, 3, 4])
    assert draft.config.resolve_feature_layer_ids(8) == [1, 3, 4]
    assert draft.config.resolve_feature_layer_ids(4) == [1, 3, 4]
    draft.save_pretrained(tmp_path / "own")
    assert EagleDraftModel.from_pretrained(tmp_path / "own", feature_layer_ids=[0, 3, 4]).config.feature_layer_ids == [
        0, 3, 4,
    ]  # fmt: skip


def test_a_list_of_another_length_than_the_head_reads_is_refused(tmp_path):
    folder = write_head(tmp_path, FLAT, dense_head(num_features=4))
    with pytest.raises(ValueError, match=r"reads 4 hidden states.*speaks of 3.*feature_layer_ids=\[...\]"):
        EagleDraftModel.from_pretrained(folder)
    assert EagleDraftModel.from_pretrained(folder, feature_layer_ids=[1, 2, 3, 4]).config.num_features == 4
    with pytest.raises(ValueError, match="speaks of 2"):
        EagleDraftModel.from_pretrained(folder, feature_layer_ids=[1, 2])


def test_what_was_decided_is_logged_once(tmp_path, caplog):
    folder = write_head(tmp_path, FLAT | inside(1, 3, 4), dense_head())
    with caplog.at_level("INFO", logger="eagle_hf.checkpoints.reading"):
        EagleDraftModel.from_pretrained(folder, norm_output=True)
    (message,) = [record.getMessage() for record in caplog.records if "layout" in record.getMessage()]
    for part in ("`modelopt`", "hidden states [2, 4, 5]: outputs of layers [1, 3, 4]", "norm_output=True as asked for"):
        assert part in message


def test_outputs_of_layers_and_back():
    assert read_feature_layers(inside(*to_layer_outputs([2, 16, 29]))).ids == [2, 16, 29]
    with pytest.raises(ValueError, match="cannot say 0"):
        to_layer_outputs([0, 2])
