"""
What was measured in vLLM (benchmarks/results/engines.json), the refusals in the code and the table in the documentation
say the same. vLLM itself is not needed for that.
"""

import json

import pytest
from engines.engine_run import FORCED, NUM_DRAWN, READ_BY_VLLM, RESULTS, TARGET, TRAINED, says_so
from engines.engines_table import PAGE, render
from engines.heads import HEADS, PLAIN, drawn_heads

from eagle_hf import EagleConfig, EagleDraftModel
from eagle_hf.checkpoints import modelopt, specforge, speculators, vllm
from eagle_hf.checkpoints.export_target import find_target
from eagle_hf.checkpoints.exporting import LAYOUTS


ROWS = json.loads(RESULTS.read_text())["rows"]
OF_HEADS = [row for row in ROWS if row["head"] != "trained demo pair"]


def decisions(rows):
    """Rows in which the code refuses what was measured, or writes what was refused then."""
    target, found, heads = find_target(str(TARGET)), [], {}
    for row in rows:
        if row["head"] not in heads:
            draft = EagleDraftModel(EagleConfig(**(PLAIN | row["fields"])))
            heads = {row["head"]: (draft.config, draft.state_dict())}  # rows of a head stand together
        config, weights = heads[row["head"]]
        try:
            LAYOUTS[row["layout"]].write(config, dict(weights), target)
            refuses = False
        except ValueError:
            refuses = True
        if refuses != (row["outcome"] == "refused"):
            found.append((row["head"], row["layout"]))
    return found


def test_all_heads_were_measured_in_all_layouts():
    """A new head, or one with other options, asks for another run."""
    expected = [
        (name, fields, layout) for name, fields in (HEADS | drawn_heads(NUM_DRAWN)).items() for layout in READ_BY_VLLM
    ]
    assert [(row["head"], row["fields"], row["layout"]) for row in OF_HEADS] == expected


def test_no_head_was_written_that_drafts_other_tokens():
    assert [row for row in ROWS if row["outcome"] == "different" and not says_so(row)] == []
    assert {row["outcome"] for row in ROWS} <= {"identical", "refused", "does not load", "different", "not run"}
    assert {row["head"] for row in ROWS if row["outcome"] == "not run"} <= {"latent attention"}
    assert all(row["chains"][0] == row["chains"][1] > 40 for row in ROWS if row["outcome"] == "identical")
    assert all(row["texts"][0] == row["texts"][1] for row in ROWS if row["outcome"] == "identical")


def test_refused_heads_that_were_written_for_the_experiment_drafted_other_tokens():
    forced = {
        (row["head"], row["layout"]): row["written_all_the_same"] for row in ROWS if "written_all_the_same" in row
    }
    assert forced.keys() == FORCED.keys()
    assert {found["outcome"] for found in forced.values()} == {"different"}


def test_whatever_is_written_for_vllm_loads():
    assert [row["head"] for row in ROWS if row["layout"] == "vllm" and row["outcome"] == "does not load"] == []


def test_the_trained_pair_drafted_what_we_draft():
    (row,) = [row for row in ROWS if row["head"] == "trained demo pair"]
    assert row["chains"][1] > 900
    assert EagleDraftModel.from_pretrained(TRAINED).config.feature_layer_ids == [3, 12, 19]


def test_the_code_refuses_what_was_refused_and_writes_what_was_run():
    assert decisions(OF_HEADS) == []


@pytest.mark.parametrize("module", [speculators, specforge, modelopt, vllm])
def test_dropping_a_refusal_would_be_seen(module, monkeypatch):
    monkeypatch.setattr(module, "refuse", lambda *args: None)
    layout = {speculators: "vllm", specforge: "sglang", modelopt: "modelopt", vllm: "vllm"}[module]
    refused = [row for row in OF_HEADS if row["layout"] == layout and row["outcome"] == "refused"]
    if module is vllm:  # which refuses EAGLE-1 heads itself
        refused = [row for row in refused if "EAGLE-1" in row["head"]]
    assert decisions(refused[:6])


def test_the_table_in_the_documentation_is_up_to_date():
    page = PAGE.read_text()
    assert render(page) == page, "run `python tests/engines/engines_table.py`"
