"""Commands on cards: what was typed, without folders of this machine and without tokens."""

import pytest

from eagle_hf.hub.public_command import public_command, without_paths


@pytest.mark.parametrize(
    ("word", "public"),
    [
        ("/data/someone/answers.jsonl", "answers.jsonl"),
        ("./answers.jsonl", "answers.jsonl"),
        ("../secret/answers.jsonl", "answers.jsonl"),
        ("~/secret/answers.jsonl", "answers.jsonl"),
        ("C:\\secret\\answers.jsonl", "answers.jsonl"),
        ("C:/secret/answers.jsonl", "answers.jsonl"),
        ("\\\\server\\secret\\answers.jsonl", "answers.jsonl"),
        ("file:///secret/answers.jsonl", "answers.jsonl"),
        ("secret/more/answers", "answers"),
        ("/data/secret/", "secret"),
        ("/cache/secret/models--org--target/snapshots/0123", "org/target"),
        ("org/target", "org/target"),
        ("5e-3", "5e-3"),
        ('{"file": "/data/secret/x.json", "a": 1}', '{"file": "x.json", "a": 1}'),
        ('{"enable_thinking": false}', '{"enable_thinking": false}'),
    ],
)
def test_of_a_path_its_last_part_is_left(word, public):
    for argv in (["train", "--data", word], ["train", f"--target={word}"], ["bench", word]):
        command = public_command(argv)
        assert public in command
        assert "secret/" not in command.replace("\\", "/")
        assert "someone" not in command


def test_a_folder_that_is_there_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "head").mkdir(parents=True)
    assert public_command(["train", "--output_dir", "runs/head"]) == "eagle-hf train --output_dir head"
    named = ["train", "--target", "runs/head", "--base_model", "runs/head"]
    assert public_command(named, {"runs/head": "org/x"}) == "eagle-hf train --target org/x --base_model org/x"


def test_what_is_written_to_is_no_name_even_before_it_is_there():
    assert public_command(["train", "--output_dir", "runs/head"]) == "eagle-hf train --output_dir head"
    assert public_command(["bench", "--tasks", "mt_bench", "my/tasks"]) == "eagle-hf bench --tasks mt_bench tasks"


@pytest.mark.parametrize("token", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--token", "hf_secret"]])
def test_tokens_are_left_out(token):
    assert public_command(["train", *token, "--seed", "1"]) == "eagle-hf train --seed 1"


def test_a_command_as_text():
    text = "eagle-hf bench --target /data/secret/target --draft org/head --token hf_secret"
    assert without_paths(text) == "eagle-hf bench --target target --draft org/head"
    assert without_paths("/data/secret/bench.py --n 3") == "bench.py --n 3"
    assert "secret" not in without_paths("bench '/data/secret/x")
