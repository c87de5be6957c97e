"""What loading says where the Hub does not answer, or may not be asked: never that a head is none, or has no files."""

import pytest
from fake_hub import Client, ClientError, FakeHub, Repository
from test_push import HEAD


FILES = {path.name: path.read_bytes() for path in HEAD.iterdir() if path.is_file()}
TARGET = {path.name: path.read_bytes() for path in (HEAD.parent / "demo-llama-10m").iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        for name, files in {"head": FILES, "empty": {"README.md": b""}, "seen": FILES, "target": TARGET}.items():
            hub.repositories[f"org/{name}"] = Repository(is_private=False)
            hub.repositories[f"org/{name}"].commit("main", dict(files))
        yield hub


@pytest.fixture(scope="module")
def client(hub):
    with Client(hub.url) as client:
        client.run("import time; time.sleep = lambda seconds: None")  # the client tries again and again
        client.run("from huggingface_hub import constants, snapshot_download")
        client.run("from eagle_hf import EagleDraftModel, inspect_head")
        client.run("from eagle_hf.loading import load_target, load_tokenizer")
        client.run("EagleDraftModel.from_pretrained('org/seen')")  # now in the cache
        client.run("snapshot_download('org/target')")
        yield client


@pytest.fixture
def break_hub(hub):
    def set_status(status, *files):
        hub.broken, hub.breaks = status, files

    yield set_status
    hub.broken, hub.breaks = None, ()


def refusal(client, code):
    with pytest.raises(ClientError) as error:
        client.run(code)
    assert "OSError" in error.value.kinds
    return str(error.value)


@pytest.mark.parametrize("status", [500, 503, "closed"])
@pytest.mark.parametrize("files", [(), ("config.json",), ("model.safetensors",)], ids=str)
def test_a_hub_that_fails_is_named_and_the_head_is_not_blamed(client, break_hub, status, files, tmp_path):
    break_hub(status, *files)
    said = refusal(client, f"EagleDraftModel.from_pretrained('org/head', cache_dir={str(tmp_path)!r})")
    assert "was not reached" in said
    assert str(status) in said or status == "closed"
    assert "no EAGLE head" not in said
    assert "no weights" not in said


@pytest.mark.parametrize("load", ["load_target", "load_tokenizer"])
def test_a_target_is_not_blamed_either(client, break_hub, load):
    break_hub(503)
    said = refusal(client, f"{load}('org/unseen')")
    assert "was not reached" in said
    assert "503" in said


def test_a_target_in_the_cache_loads_while_the_hub_fails(client, break_hub):
    """Nobody has asked yet whether it is an adapter, or has a file for its processor."""
    break_hub(503)
    assert client.run("result = type(load_target('org/target')).__name__") == "LlamaForCausalLM"
    assert client.run("result = load_tokenizer('org/target').chat_template is not None")


@pytest.mark.parametrize("load", ["load_target", "load_tokenizer"])
def test_a_target_that_the_hub_does_not_show_is_told_as_before(client, load):
    assert "private" in refusal(client, f"{load}('org/nobody')")


def test_what_is_in_the_cache_loads_while_the_hub_fails(client, break_hub):
    break_hub(503)
    assert client.run("result = EagleDraftModel.from_pretrained('org/seen').config.model_type") == "eagle"


def test_a_repository_that_is_there_and_no_head_is_still_told_so(client):
    """The negative control: the Hub answers, and the file is really missing."""
    assert "no config.json" in refusal(client, "EagleDraftModel.from_pretrained('org/empty')")
    assert "no config.json" in refusal(client, "EagleDraftModel.from_pretrained('org/empty', local_files_only=True)")


@pytest.mark.parametrize("switch", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline_is_named_with_the_switch(client, switch):
    options = ", local_files_only=True" if switch == "local_files_only" else ""
    client.run(f"constants.HF_HUB_OFFLINE = {switch == 'HF_HUB_OFFLINE'}")
    said = refusal(client, f"EagleDraftModel.from_pretrained('org/never-seen'{options})")
    client.run("constants.HF_HUB_OFFLINE = False")
    assert switch in said
    assert "no EAGLE head" not in said


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing-here", "runs/none/head"])
def test_a_folder_that_is_not_there_is_called_a_folder(client, path):
    assert f"no folder {path}" in refusal(client, f"EagleDraftModel.from_pretrained({path!r})")
    assert f"no folder {path}" in refusal(client, f"inspect_head({path!r})")


def test_a_misspelt_folder_is_guessed(client, tmp_path):
    (tmp_path / "llama-head").mkdir()
    said = refusal(client, f"EagleDraftModel.from_pretrained({str(tmp_path / 'lama-head')!r})")
    assert f"Did you mean {tmp_path / 'llama-head'}?" in said


def test_a_file_is_no_folder(client):
    said = refusal(client, f"EagleDraftModel.from_pretrained({str(HEAD / 'model.safetensors')!r})")
    assert "is a file" in said
