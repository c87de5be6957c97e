"""Inspecting heads: a trained pair, read rightly and wrongly on purpose."""

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, GOLDEN_CASES, golden_draft, use_options
from doubles import random_draft
from transformers import AutoModelForCausalLM

import eagle_hf
from eagle_hf import EagleDraftModel, inspect_head
from eagle_hf.cli.main import main
from eagle_hf.inspection import Measured, Reading
from eagle_hf.inspection.acceptance import accepted_counts, share_by_depth, write_answer
from eagle_hf.inspection.report import _verdict


CARDS = Path(__file__).parents[2] / "hub_cards"
PROMPTS = sorted({tuple(case.json["prompt"]) for case in GOLDEN_CASES})[:6]


@pytest.fixture
def publish(tmp_path):
    """Save a trained head with fields of its configuration changed, as a careless conversion would."""

    def save(name="A_eagle3", **changes):
        golden_draft(name).save_pretrained(tmp_path / "head")
        config = json.loads((tmp_path / "head" / "config.json").read_text())
        (tmp_path / "head" / "config.json").write_text(json.dumps(config | changes))
        return tmp_path / "head"

    return save


class TestChains:
    @pytest.mark.parametrize("name", ["A_eagle3", "A_eagle3_narrow", "A_eagle1"])
    def test_side_by_side_they_are_those_of_generate(self, golden_target, name):
        """Walking along the counts gives exactly the acceptance lengths of a generation with chains."""
        draft = use_options(golden_draft(name), draft_tree="chain", draft_depth=4, num_assistant_tokens=4)
        for prompt in PROMPTS[:3]:
            ids = torch.tensor([prompt])
            answer = write_answer(golden_target, ids, 48)
            counts = accepted_counts(golden_target, draft, answer, depth=4).tolist()
            walked, position = [], 0
            while position < len(counts):
                walked.append(1 + counts[position])
                position += walked[-1]
            output = golden_target.generate(
                ids, assistant_model=draft, max_new_tokens=48, do_sample=False, return_dict_in_generate=True
            )
            assert output.acceptance_lengths[0][: len(walked)] == walked
            assert max(walked) > 1  # else it would prove nothing

    def test_shares_are_cumulative(self):
        assert share_by_depth([0, 1, 3, 3], 4) == [0.75, 0.5, 0.5, 0.0]

    def test_a_short_answer_gives_no_chain(self, golden_target):
        answer = write_answer(golden_target, torch.tensor([PROMPTS[0]]), 4)
        assert len(accepted_counts(golden_target, golden_draft("A_eagle3"), answer, depth=5)) == 0


class TestVerdict:
    def test_a_head_that_is_read_rightly(self, golden_target):
        inspection = inspect_head(GOLDEN / "drafts" / "A_eagle3", golden_target, prompts=PROMPTS)
        assert inspection.is_read_rightly
        assert inspection.best.reading == Reading()
        assert inspection.verdict.startswith("The published reading is right")
        assert inspection.best.acceptance[0] > 0.7
        assert len(inspection.measured) == 6
        assert inspection.load_best().config.to_dict() == golden_draft("A_eagle3").config.to_dict()

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ({"feature_layer_ids": [3, 4, 5]}, {"feature_layer_ids": [2, 3, 4]}),
            ({"feature_layer_ids": [1, 2, 3]}, {"feature_layer_ids": [2, 3, 4]}),
            ({"norm_output": True}, {"norm_output": False}),
            ({"norm_before_residual": True}, {"norm_before_residual": False}),
            (
                {"feature_layer_ids": [1, 2, 3], "norm_output": True},
                {"feature_layer_ids": [2, 3, 4], "norm_output": False},
            ),
        ],
        ids=str,
    )
    def test_a_head_that_is_read_wrongly(self, golden_target, publish, wrong, right):
        folder = publish(**wrong)
        inspection = inspect_head(folder, golden_target, prompts=PROMPTS)
        assert inspection.is_read_rightly is False
        assert inspection.best.reading.changes == right
        assert inspection.verdict.startswith("Another reading is better")
        for name, value in right.items():
            assert f"{name}={value}" in inspection.verdict
        assert inspection.best.mean > inspection.measured[0].mean
        loaded = inspection.load_best()
        assert {name: getattr(loaded.config, name) for name in right} == right

    def test_what_the_verdict_says_to_type_is_right(self, golden_target, publish):
        inspection = inspect_head(publish(norm_output=True), golden_target, prompts=PROMPTS[:3])
        lines = [line.strip() for line in inspection.verdict.splitlines() if line.startswith("    ")]
        names = {"EagleDraftModel": EagleDraftModel}
        exec("\n".join(lines), names)  # noqa: S102
        assert names["draft"].config.norm_output is False

    def test_an_eagle1_head(self, golden_target):
        inspection = inspect_head(GOLDEN / "drafts" / "A_eagle1", golden_target, prompts=PROMPTS)
        assert inspection.is_read_rightly
        assert [m.reading.changes for m in inspection.measured] == [{}, {"feature_layer_ids": [7]}, {}]

    def test_a_head_of_another_target(self, golden_target, tmp_path):
        random_draft(golden_target, feature_layer_ids=None).save_pretrained(tmp_path / "random")
        inspection = inspect_head(tmp_path / "random", golden_target, prompts=PROMPTS[:2])
        assert inspection.is_read_rightly is False
        assert "No reading works" in inspection.verdict

    def test_other_token_pairs_have_no_option(self):
        low, high = (
            Measured(reading, [share], [0] * 10)
            for reading, share in ((Reading(), 0.1), (Reading(token_shift=-1), 0.8))
        )
        assert "no option sets: it has to be trained again" in _verdict("org/head", [low, high], high)

    def test_chance_is_no_verdict(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            counts = [torch.randint(0, 5, (160,), generator=generator).tolist() for _ in range(2)]
            assert not Measured(Reading(), [0.5], counts[0]).is_better_than(Measured(Reading(), [0.5], counts[1]))


class TestDemoPair:
    def test_a_wrong_residual_is_found(self, tmp_path):
        draft = EagleDraftModel.from_pretrained(CARDS / "EAGLE3-demo-llama-10m")
        draft.config.norm_before_residual = True
        draft.save_pretrained(tmp_path)
        inspection = inspect_head(tmp_path, CARDS / "demo-llama-10m", max_new_tokens=48)
        assert inspection.best.reading.changes == {"norm_before_residual": False}

    def test_the_command(self, tmp_path, capsys):
        target = ["--target", str(CARDS / "demo-llama-10m"), "--max-new-tokens", "48", "--threads", "1"]
        head = CARDS / "EAGLE3-demo-llama-10m"
        assert main(["inspect", str(head), *target, "--json", str(tmp_path / "r.json")]) == 0
        printed = capsys.readouterr().out
        assert "* as published: 0." in printed
        assert "The published reading is right" in printed
        result = json.loads((tmp_path / "r.json").read_text())
        assert result["best"] == "as published"
        assert result["facts"]["parameters"] == 1_499_904

        draft = EagleDraftModel.from_pretrained(head)
        draft.config.norm_before_residual = True
        draft.save_pretrained(tmp_path / "wrong")
        assert main(["inspect", str(tmp_path / "wrong"), *target, "--save", str(tmp_path / "right")]) == 2
        assert EagleDraftModel.from_pretrained(tmp_path / "right").config.norm_before_residual is False


class TestFacts:
    def test_without_the_target_nothing_of_it_is_loaded(self, monkeypatch, capsys):
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
        assert main(["inspect", str(GOLDEN / "drafts" / "A_eagle3_narrow")]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        for fact in (
            "safeailab",
            "version EAGLE-3",
            "hidden size 32",
            "hidden size of the target 64",
            "vocabulary 320",
            "draft vocabulary",
            "hidden states 2, n // 2 and n - 3",
            "rotary embedding default, rope_theta 10000.0",
            "embedding its own",
            "lm_head its own",
            "residual the raw feature",
            "Nothing was measured",
        ):
            assert fact in printed

    def test_eagle1(self):
        facts = inspect_head(GOLDEN / "drafts" / "A_eagle1").facts
        assert facts.version == "EAGLE-1 or EAGLE-2"
        assert facts.decisions["biases"] == "fc_bias"
        assert facts.decisions["lm_head"] == "the target's"


class TestRefusals:
    def test_another_target(self, golden_target, tmp_path):
        random_draft(golden_target, vocab_size=512, draft_vocab_size=64).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="vocabulary of 320 tokens, but the draft was made for one of 512"):
            inspect_head(tmp_path, golden_target)

    def test_text_without_a_tokenizer(self, golden_target):
        with pytest.raises(ValueError, match="Got a prompt as text, but no tokenizer"):
            inspect_head(GOLDEN / "drafts" / "A_eagle3", golden_target)

    def test_answers_that_are_too_short(self, golden_target):
        with pytest.raises(ValueError, match="shorter than a chain of 5 tokens"):
            inspect_head(GOLDEN / "drafts" / "A_eagle3", golden_target, prompts=PROMPTS[:1], max_new_tokens=3)


def test_it_is_public():
    assert eagle_hf.inspect_head is inspect_head
