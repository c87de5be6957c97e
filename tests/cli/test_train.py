"""`eagle-hf train` as a user runs it: from a file of conversations to a head that `generate` takes."""

import json
import random

import pytest
import torch
from architectures import tiny_target
from doubles import letter_tokenizer
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from eagle_hf import EagleDraftModel
from eagle_hf.cli.main import main
from eagle_hf.training.durable_checkpoints import complete_checkpoints


@pytest.fixture
def command(tmp_path):
    target = tiny_target("llama")
    target.save_pretrained(tmp_path / "target")
    letter_tokenizer().save_pretrained(tmp_path / "target")
    generator = random.Random(0)
    with open(tmp_path / "data.jsonl", "w") as file:
        for _ in range(40):
            texts = ["".join(generator.choices("abcdefgh", k=generator.randrange(6, 14))) for _ in range(2)]
            file.write(json.dumps({"prompt": texts[0], "completion": texts[1]}) + "\n")
    return [
        "train", "--target", str(tmp_path / "target"), "--data", str(tmp_path / "data.jsonl"),
        "--output_dir", str(tmp_path / "out"), "--use_cpu", "--report_to", "none", "--max_steps", "4",
        "--per_device_train_batch_size", "4", "--num_unrolls", "2", "--learning_rate", "5e-3",
        "--feature_layer_ids", "0", "1", "2", "--disable_tqdm", "True", "--save_steps", "2", "--logging_steps", "2",
    ]  # fmt: skip


def head_works(tmp_path) -> EagleDraftModel:
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    head = EagleDraftModel.from_pretrained(tmp_path / "out" / "head")
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(target.generate(prompt, **settings), target.generate(prompt, assistant_model=head, **settings))
    return head


def test_a_head_is_trained_evaluated_and_saved(tmp_path, command, capsys):
    assert main([*command, "--draft_vocab_size", "16", "--eval_samples", "5", "--eval_strategy", "steps",
                 "--eval_steps", "2", "--fc_norm", "--norm_output", "--intermediate_size", "48"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "40 rows" in printed
    assert "draft vocabulary of 16 tokens, which covers" in printed
    assert "eval_simulated_acceptance_length" in printed
    card = ModelCard.load(tmp_path / "out" / "head" / "README.md")
    measured = card.data.eval_results[0].metric_value
    assert f"{measured}" in printed
    assert card.data.eval_results[0].dataset_type == "samples-kept-out-of-training-greedy-chain"
    assert "| 5 |" in card.text
    assert "40 rows read, 0 of them malformed. 35 samples of" in card.text
    assert "5 more were kept for evaluation" in card.text
    assert "eagle-hf" in card.text
    config = head_works(tmp_path).config
    assert (config.draft_vocab_size, config.intermediate_size, config.fc_norm, config.norm_output) == (
        16,
        48,
        True,
        True,
    )
    assert config.base_model_name_or_path is None  # a folder of this machine


def test_the_same_command_goes_on_where_it_was_interrupted(tmp_path, command):
    assert main([*command, "--max_steps", "2", "--lr_scheduler_type", "constant"]) == 0
    assert main([*command, "--lr_scheduler_type", "constant"]) == 0
    resumed = head_works(tmp_path).state_dict()
    steps = [folder.name for folder in complete_checkpoints(tmp_path / "out")]
    assert steps == ["checkpoint-2", "checkpoint-4"]
    assert main([*command, "--lr_scheduler_type", "constant", "--output_dir", str(tmp_path / "straight")]) == 0
    straight = EagleDraftModel.from_pretrained(tmp_path / "straight" / "head").state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_a_finished_run_says_so_and_is_not_spoilt(tmp_path, command, capsys, save_strategy):
    """Started again with other data it once saved the same weights with a card that named the new file."""
    command = [*command, "--save_strategy", save_strategy]
    assert main(command) == 0
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert main([*command, "--logging_steps", "1", "--run_name", "again"]) == 0
    assert "this run has finished; its head is in" in capsys.readouterr().out
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "data.jsonl").read_text() + '{"prompt": "ab", "completion": "cd"}\n')
    moved = tmp_path / "moved.jsonl"
    moved.write_text((tmp_path / "data.jsonl").read_text())
    for options, message in (
        (["--data", str(other)], "differs from this one in the data"),
        (["--learning_rate", "1e-3"], "`learning_rate` 0.005, now 0.001"),
        (["--max_steps", "8"], "`max_steps` 4, now 8"),
        (["--head", str(tmp_path / "out" / "head")], "differs from this one in the head that training starts from"),
        (["--max_length", "8"], "differs from this one in the data"),
    ):
        assert main([*command, *options]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert "Choose another `--output_dir`" in printed
    assert main([*command, "--data", str(moved)]) == 0  # the same texts elsewhere
    (tmp_path / "target").rename(tmp_path / "renamed")
    assert main([*command, "--target", str(tmp_path / "renamed")]) == 0
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("options", [["--packing", "--max_length", "48"], ["--max_length", "22", "--overflow", "drop"]])
def test_stored_features_train_the_same_head(tmp_path, command, options, capsys):
    assert main([*command, *options, "--output_dir", str(tmp_path / "online")]) == 0
    assert main([*command, *options, "--features", str(tmp_path / "features")]) == 0
    assert "GB in" in capsys.readouterr().out
    online = EagleDraftModel.from_pretrained(tmp_path / "online" / "head").state_dict()
    for name, tensor in head_works(tmp_path).state_dict().items():
        torch.testing.assert_close(tensor, online[name], atol=1e-5, rtol=1e-4)


def test_a_head_is_trained_further(tmp_path, command):
    assert main(command) == 0
    before = head_works(tmp_path).state_dict()
    further = [*command, "--head", str(tmp_path / "out" / "head"), "--output_dir", str(tmp_path / "further")]
    assert main([*further, "--max_steps", "1", "--learning_rate", "1e-6"]) == 0
    after = EagleDraftModel.from_pretrained(tmp_path / "further" / "head").state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-4)


def test_eagle1_heads_and_muon(tmp_path, command):
    arguments = [word for word in command if word not in ("--feature_layer_ids", "0", "1")]
    index = arguments.index("--learning_rate")
    arguments = [*arguments[: index + 2], *arguments[index + 3 :]]  # the last feature layer
    assert main([*arguments, "--eagle_version", "1", "--draft_vocab_size", "20", "--muon_learning_rate", "0.01"]) == 0
    head = head_works(tmp_path)
    assert head.config.eagle_version == 1
    rows = AutoModelForCausalLM.from_pretrained(tmp_path / "target").lm_head.weight[head.draft_to_target_ids]
    assert torch.equal(head.lm_head.weight, rows)  # the target's, as they were


def test_options_of_a_yaml_file(tmp_path, command, capsys):
    (tmp_path / "recipe.yaml").write_text("loss: lk_lambda\nmax_steps: 3\n")
    assert main([*command, "--config", str(tmp_path / "recipe.yaml"), "--max_steps", "1"]) == 0
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["global_step"] == 1
    facts = json.loads((tmp_path / "out" / "checkpoint-1" / "checkpoint_complete.json").read_text())
    assert facts["run"]["loss"] == "lk_lambda"
    (tmp_path / "recipe.yaml").write_text("los: kl\n")
    with pytest.raises(SystemExit):
        main([*command, "--config", str(tmp_path / "recipe.yaml")])
    assert "unrecognized arguments: --los kl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["{"], [], "not JSON"),
        (['{"nothing": 1}'] * 3, [], "malformed"),
        ([], [], "No rows in"),
        (['{"prompt": "ab", "completion": "cd"}'] * 4, ["--eval_samples", "4"], "leaves nothing of 4 samples"),
        (['{"prompt": "ab", "completion": "cd"}'] * 4, ["--feature_layer_ids", "0", "1", "99"], "valid indices are"),
        (['{"prompt": "ab", "completion": "cd"}'] * 4, ["--feature_layer_ids", "0", "1", "1"], "hidden state twice"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_training(tmp_path, command, capsys, rows, options, message):
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    assert main([*command, *options]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("checkpoint-*")) if (tmp_path / "out").exists() else True
