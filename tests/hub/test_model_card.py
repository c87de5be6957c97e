"""Model cards: metadata that parses back, sections that are there, and no number that was not measured."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle_hf import DraftOptions, EagleDraftModel
from eagle_hf.hub import Measurements, TaskResult, TrainingFacts, create_model_card
from eagle_hf.hub.card import LIBRARY_NAME, eval_results
from eagle_hf.hub.publishing import write_custom_generate


CARDS = Path(__file__).parents[2] / "hub_cards"
HEAD, TARGET = CARDS / "EAGLE3-demo-llama-10m", CARDS / "demo-llama-10m"
SECTIONS = [
    "Use",
    "Requirements",
    "Facts",
    "Results",
    "Acceptance by depth",
    "Training",
    "Losslessness",
    "Limitations",
    "Licence",
    "Citation",
    "Provenance",
]  # fmt: skip  (what it is comes first, without a heading)

MEASUREMENTS = Measurements(
    results=[
        TaskResult("MT-Bench", 3.125, 80, dataset="philschmid/mt-bench", acceptance_by_depth=[0.75, 0.5, 0.25],
                   speedup=2.4, plain_tokens_per_second=30.0, eagle_tokens_per_second=72.0),
        TaskResult("MT-Bench", 2.5, 80, temperature=1.0, dataset="philschmid/mt-bench", acceptance_by_depth=[0.6, 0.3]),
        TaskResult("GSM8K", 4.0, 100),
    ],
    command="python benchmarks/speed.py --json result.json",
    hardware="one accelerator",
    dtype="bfloat16",
    tokens_compared=12345,
    notes="Medians of three runs.",
)  # fmt: skip
TRAINING = TrainingFacts(
    command="eagle-hf train --config recipe.yaml",
    data="10,000 prompts, answered by the target with its chat template.",
    datasets=["org/prompts"],
    hyperparameters={"learning rate": 1e-4, "epochs": 2},
    seed=7,
    hardware="one accelerator",
    hours=1.5,
    final_metrics={"loss": 1.25},
    git_sha="0123abc",
)


@pytest.fixture(scope="module")
def draft():
    return EagleDraftModel.from_pretrained(HEAD)


@pytest.fixture(scope="module")
def full(draft):
    return create_model_card(
        draft, "org/head", measurements=MEASUREMENTS, training=TRAINING, license="apache-2.0", language="en",
        base_model="org/target", base_model_revision="abc123", tags=["chat"], custom_generate=True,
    )  # fmt: skip


def headings(card):
    return re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE)


class TestMetadata:
    def test_everything_parses_back_from_a_file(self, full, tmp_path):
        full.save(tmp_path / "README.md")
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.library_name == LIBRARY_NAME == "eagle_hf"
        assert (data.license, data.language, data.base_model) == ("apache-2.0", "en", "org/target")
        assert data.datasets == ["org/prompts"]
        assert data.metrics == ["acceptance_length"]
        assert {"eagle", "eagle3", "speculative-decoding", "draft-model", "custom_generate", "chat"} <= set(data.tags)
        results = {(r.dataset_name, r.metric_type, r.metric_name[-1]): r.metric_value for r in data.eval_results}
        assert results == {
            ("MT-Bench", "acceptance_length", "0"): 3.125,
            ("MT-Bench", "speedup", "0"): 2.4,
            ("MT-Bench", "acceptance_length", "1"): 2.5,
            ("GSM8K", "acceptance_length", "0"): 4.0,
        }
        assert {r.task_type for r in data.eval_results} == {"text-generation"}

    def test_what_it_is_to_its_target_and_what_it_is_for(self, draft, full):
        """Without a relation the Hub takes it for a finetune; of those that it knows, an adapter needs its base too."""
        data = full.data.to_dict()
        assert (data["base_model_relation"], data["pipeline_tag"]) == ("adapter", "text-generation")
        nameless = create_model_card(draft, "org/head", base_model="/data/target").data.to_dict()
        assert "base_model_relation" not in nameless

    @pytest.mark.parametrize(
        ("task", "kind"),
        [
            ("GSM8K", "gsm8k"),
            ("samples kept out, greedy chain", "samples-kept-out-greedy-chain"),
            ("a: b/c (d)", "a-b-c-d"),
        ],
    )
    def test_the_type_of_a_data_set_is_plain(self, task, kind):
        assert eval_results(TaskResult(task, 2.0, 1))[0].dataset_type == kind

    @pytest.mark.parametrize(
        "name", ["/data/models/target", "../target", "./target", "~/target", "a/b/c", "C:\\a\\b", "file:///a/b"]
    )
    def test_a_folder_is_no_base_model(self, draft, name):
        card = create_model_card(draft, "org/head", base_model=name)
        assert card.data.base_model is None
        assert name not in str(card)


class TestSections:
    def test_all_are_there_whether_anything_was_measured_or_not(self, draft, full):
        assert headings(full) == headings(create_model_card(draft, "org/head")) == SECTIONS

    def test_results(self, full):
        for text in (
            "| MT-Bench | 0 | 80 | 3.12 | 2.40 | 30.00 | 72.00 |",
            "| GSM8K | 0 | 100 | 4.00 | not measured | not measured | not measured |",
            "| MT-Bench | 0 | 0.75 | 0.50 | 0.25 |",
            "| MT-Bench | 1 | 0.60 | 0.30 |  |",
            "python benchmarks/speed.py --json result.json",
            "one accelerator; bfloat16; eagle_hf",
            "12,345 tokens were compared",
            "| learning rate | 0.0001 |",
            "| seed | 7 |",
            "| loss, at the end | 1.25 |",
            "eagle-hf train --config recipe.yaml",
            "commit 0123abc",
            "[org/target](https://huggingface.co/org/target) (revision `abc123`)",
            "The head: apache-2.0.",
        ):
            assert text in full.text

    def test_without_measurements_there_are_no_figures(self, draft):
        card = create_model_card(draft, "org/head", base_model="org/target")
        assert card.data.eval_results is None
        assert card.data.metrics is None
        assert card.text.count("Nothing was measured when this card was written") == 2
        assert "eagle-hf inspect org/head --target org/target" in card.text
        assert "eagle-hf generate --target org/target --draft org/head --compare" in card.text
        assert "How this head was trained is not recorded here." in card.text
        assert "No licence of the head was stated" in card.text
        for section in ("Results", "Acceptance by depth", "Training", "Losslessness"):
            body = card.text.partition(f"## {section}\n")[2].partition("\n## ")[0]
            assert not re.search(r"\d[.,]\d|\d %", body), section

    def test_no_trace_of_the_template(self, draft, full):
        for card in (full, create_model_card(draft, "org/head")):
            assert not re.search(r"{[{%]|[%}]}|None", str(card))
            assert "\n\n\n" not in card.text.strip()

    def test_the_quick_start_runs(self, draft, tmp_path, monkeypatch):
        for model_id, folder in (("org/head", HEAD), ("org/target", TARGET)):
            (tmp_path / model_id).parent.mkdir(exist_ok=True)
            (tmp_path / model_id).symlink_to(folder)
        monkeypatch.chdir(tmp_path)
        (block,) = re.findall(
            r"```python\n(.*?)```", create_model_card(draft, "org/head", base_model="org/target").text, flags=re.DOTALL
        )
        names = {}
        exec(block, names)  # noqa: S102
        assert len(names["output"][0]) > 5


class TestFigures:
    @pytest.mark.parametrize("value", [0.99, float("nan"), -1.0])
    def test_impossible_lengths(self, value):
        with pytest.raises(ValueError, match="every verification gives at least one token"):
            TaskResult("a", value, 1)

    @pytest.mark.parametrize("shares", [[0.5, 0.6], [1.2], [-0.1], [0.5, float("nan")]])
    def test_impossible_shares(self, shares):
        with pytest.raises(ValueError, match="expected shares from 0 to 1 that do not grow"):
            TaskResult("a", 2.0, 1, acceptance_by_depth=shares)

    def test_results_need_their_command_and_hardware(self):
        for changes in ({"command": ""}, {"hardware": ""}, {"results": []}):
            arguments = {"results": [TaskResult("a", 2.0, 1)], "command": "c", "hardware": "h", "dtype": "d"} | changes
            with pytest.raises(ValueError, match="need results, the command that measures them, and the hardware"):
                Measurements(**arguments)
        with pytest.raises(ValueError, match="nothing was measured"):
            TaskResult("a", 2.0, 0)


class TestOurCards:
    @pytest.mark.parametrize("folder", sorted(path.parent for path in CARDS.glob("*/README.md")), ids=lambda p: p.name)
    def test_metadata_parses_back(self, folder):
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "apache-2.0"
        is_head = (folder / "config.json").read_text().count("EagleDraftModel") > 0
        assert card.data.library_name == (LIBRARY_NAME if is_head else "transformers")
        if is_head:
            assert card.data.base_model == EagleDraftModel.from_pretrained(folder).config.base_model_name_or_path
            assert {"eagle", "speculative-decoding", "draft-model"} <= set(card.data.tags)
            assert "## Losslessness" in card.text


class TestCustomGenerate:
    @pytest.fixture(autouse=True)
    def modules(self, tmp_path, monkeypatch):
        """Where transformers copies code of repositories to."""
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def test_a_local_folder(self, tmp_path):
        write_custom_generate(tmp_path, str(HEAD))
        target = AutoModelForCausalLM.from_pretrained(TARGET).eval()
        inputs = AutoTokenizer.from_pretrained(TARGET)("def add", return_tensors="pt", return_token_type_ids=False)
        options = {"max_new_tokens": 16, "do_sample": True, "return_dict_in_generate": True}
        torch.manual_seed(0)
        drafted = target.generate(**inputs, custom_generate=str(tmp_path), trust_remote_code=True, **options)
        torch.manual_seed(0)
        plain = target.generate(**inputs, **options)
        assert torch.equal(drafted.sequences, plain.sequences)
        assert drafted.draft_forwards > 0

    def test_it_needs_the_callers_consent(self, tmp_path):
        write_custom_generate(tmp_path, str(HEAD))
        target = AutoModelForCausalLM.from_pretrained(TARGET)
        with pytest.raises(ValueError, match="trust_remote_code"):
            target.generate(torch.tensor([[1, 2]]), custom_generate=str(tmp_path), trust_remote_code=False)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, "sized while generating on a CPU, dynamic elsewhere; at most 59 nodes"),
        ("auto", "sized while generating, at most 59 nodes"),
        ("dynamic", "dynamic, 59 nodes"),
        ("chain", "chain of 8"),
    ],
)
def test_the_card_says_how_trees_are_chosen(draft, kind, expected, monkeypatch):
    config = DraftOptions.open_generation_config()
    config.draft_tree = kind
    monkeypatch.setattr(draft, "generation_config", config)
    assert f"| tree (`generation_config`) | {expected}" in create_model_card(draft, "org/head").text
