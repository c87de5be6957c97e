"""
Exported heads in a real engine. With the same target, in float32 and greedily, a right export drafts the very tokens
that we draft, also with random weights, and this needs no tolerance: of thousands of chains none differed by rounding.
"""

import json

import pytest
from engines.engine_run import RESULTS, main, says_so


@pytest.fixture(scope="module")
def rows():
    main()
    return json.loads(RESULTS.read_text())["rows"]


@pytest.mark.engine
class TestVllm:
    def test_no_head_is_written_that_drafts_other_tokens(self, rows):
        assert [row for row in rows if row["outcome"] == "different" and not says_so(row)] == []

    def test_what_is_written_for_it_loads(self, rows):
        assert [row for row in rows if row["outcome"] == "does not load" and row["layout"] == "vllm"] == []

    def test_most_heads_are_written_for_it(self, rows):
        """So that a refusal of everything would not pass."""
        assert sum(row["outcome"] == "identical" for row in rows if row["layout"] == "vllm") > 50
        assert sum(row["outcome"] == "identical" for row in rows if row["layout"] != "vllm") > 40

    def test_texts_are_those_of_the_target(self, rows):
        assert all(row["texts"][0] == row["texts"][1] for row in rows if "texts" in row)

    def test_the_trained_pair(self, rows):
        (row,) = [row for row in rows if row["head"] == "trained demo pair"]
        identical, compared = row["chains"]
        assert identical == compared > 900
        assert 0.5 < row["accepted"][0] / compared < 0.7
