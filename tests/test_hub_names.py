"""What may be written into files that others read: names of repositories, and no path of any system."""

from pathlib import Path

import pytest

from eagle_hf.hub_names import hub_id, is_hub_id


PATHS = [
    "/data/models/target", "./target", "../target", ".", "..", "~", "~/target", "a/b/c", "runs/target/", "target/",
    "C:\\models\\target", "C:/models/target", "models\\target", "\\\\server\\share\\target", "file:///data/target",
    "file:target", "hf://org/target", "https://huggingface.co/org/target", "$HOME/target", "%USERPROFILE%\\target",
    "/data/someone/models--org/x", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_paths_of_every_system_are_no_repositories(name):
    assert not is_hub_id(name)
    assert hub_id(name) is None


@pytest.mark.parametrize("name", ["org/target", "gpt2", "Qwen/Qwen3-8B", "meta-llama/Llama-3.2-1B", "a_b/c.d"])
def test_names_of_repositories_are_kept(name):
    assert is_hub_id(name)
    assert hub_id(name) == name


def test_a_folder_that_is_there_is_a_path_however_it_is_spelt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/target") == "runs/target"
    (tmp_path / "runs" / "target").mkdir(parents=True)
    assert hub_id("runs/target") is None
    assert hub_id(Path("runs")) is None
    assert is_hub_id("runs/target")  # where the user says that it is one


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/cache/hub/models--org--target/snapshots/0123abc", "org/target"),
        ("/cache/hub/models--org--target/snapshots/0123abc/", "org/target"),
        ("C:\\cache\\hub\\models--org--target-8B\\snapshots\\0123abc", "org/target-8B"),
        ("/cache/hub/models--gpt2/snapshots/0123abc", "gpt2"),
        ("/cache/hub/models--org--target/snapshots/0123abc/sub/folder", None),
        ("/cache/hub/datasets--org--data/snapshots/0123abc", None),
    ],
)
def test_a_folder_of_the_hubs_cache_is_its_repository(folder, name):
    assert hub_id(folder) == name


def test_no_name_is_no_repository():
    assert hub_id(None) is None
    assert not is_hub_id(None)
