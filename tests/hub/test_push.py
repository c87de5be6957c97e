"""Pushing to and loading from a Hub, with the real client, against a server of our own."""

import hashlib
from pathlib import Path

import pytest
from fake_hub import TOKEN, Client, ClientError, FakeHub
from huggingface_hub import ModelCard


CARDS = Path(__file__).parents[2] / "hub_cards"
HEAD = CARDS / "EAGLE3-demo-llama-10m"
FILES = {".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors"}

SETUP = f"""
import torch
from eagle_hf import EagleDraftModel
from eagle_hf.hub import Measurements, TaskResult
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
TOKEN = {TOKEN!r}
draft = EagleDraftModel.from_pretrained({str(HEAD)!r})
def same(other):
    ours, theirs = draft.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
"""


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub):
    with Client(hub.url) as client:
        client.run(SETUP)
        yield client


def test_upload_and_download(hub, client):
    client.run("commit = draft.push_to_hub('org/head', token=TOKEN, license='apache-2.0')")
    assert set(hub.files("org/head")) == FILES
    assert client.run("result = commit.oid") == hub.repositories["org/head"].branches["main"]
    assert len(hub.repositories["org/head"].commits) == 2  # the first one, and all of ours in one
    card = ModelCard(hub.files("org/head")["README.md"].decode())
    assert card.data.library_name == "eagle_hf"
    assert card.data.base_model == "demo-llama-10m"
    assert 'EagleDraftModel.from_pretrained("org/head")' in card.text

    assert client.run("loaded = EagleDraftModel.from_pretrained('org/head'); result = same(loaded)")
    assert client.run("result = loaded.generation_config.num_assistant_tokens") == 15
    assert client.run("result = loaded.name_or_path") == "org/head"
    assert client.run("result = same(AutoModel.from_pretrained('org/head'))")
    assert client.run("result = type(AutoConfig.from_pretrained('org/head')).__name__") == "EagleConfig"


def test_the_cache_serves_when_the_hub_is_away(hub, client):
    client.run("draft.push_to_hub('org/cached', token=TOKEN); EagleDraftModel.from_pretrained('org/cached')")
    seen = len(hub.requests)
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/cached', local_files_only=True))")
    assert len(hub.requests) == seen


def test_revisions(hub, client):
    client.run("""
first = draft.push_to_hub('org/revised', token=TOKEN).oid
other = EagleDraftModel.from_pretrained('org/revised')
with torch.no_grad():
    other.norm.weight += 1
other.push_to_hub('org/revised', token=TOKEN, revision='experiment')
""")
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/revised'))")
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/revised', revision=first))")
    assert not client.run("result = same(EagleDraftModel.from_pretrained('org/revised', revision='experiment'))")
    with pytest.raises(ClientError) as error:
        client.run("EagleDraftModel.from_pretrained('org/revised', revision='nonesuch')")
    assert "OSError" in error.value.kinds
    assert "nonesuch" in str(error.value)


def test_private_repositories_need_the_token(hub, client):
    client.run("draft.push_to_hub('org/secret', token=TOKEN, private=True)")
    assert hub.repositories["org/secret"].is_private
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/secret', token=TOKEN))")
    for token in (None, "hf_of_somebody_else"):
        with pytest.raises(ClientError) as error:
            client.run(
                f"EagleDraftModel.from_pretrained('org/secret', token={token!r}, cache_dir=None, force_download=True)"
            )
        assert "OSError" in error.value.kinds
        assert TOKEN not in str(error.value)
    with pytest.raises(ClientError):
        client.run("draft.push_to_hub('org/secret', token='hf_of_somebody_else')")
    assert len(hub.repositories["org/secret"].commits) == 2


def test_a_connection_that_breaks_once_is_taken_up_again(hub, client):
    hub.drop_uploads = 1
    client.run("draft.push_to_hub('org/shaky', token=TOKEN)")
    assert hub.drop_uploads == 0
    uploaded = hub.files("org/shaky")["model.safetensors"]
    assert hashlib.sha256(uploaded).digest() == hashlib.sha256((HEAD / "model.safetensors").read_bytes()).digest()


def test_an_upload_that_is_killed_leaves_the_repository_as_it_was(hub, client):
    client.run("draft.push_to_hub('org/killed', token=TOKEN)")
    before = dict(hub.files("org/killed"))
    hub.stall_uploads = True
    try:
        with Client(hub.url) as victim:
            victim.run(SETUP)
            victim.send("""
with torch.no_grad():
    draft.norm.weight += 1
draft.push_to_hub('org/killed', token=TOKEN, language='en')
""")
            assert hub.is_stalling.wait(120)
    finally:
        hub.stall_uploads = False
        hub.stop_stalling.set()
    assert hub.files("org/killed") == before
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/killed', force_download=True))")


def test_a_card_that_is_there_is_kept_unless_a_new_one_is_asked_for(hub, client):
    client.run("draft.push_to_hub('org/card', token=TOKEN)")
    repository = hub.repositories["org/card"]
    repository.commit("main", {**hub.files("org/card"), "README.md": b"---\nlicense: mit\n---\nBy hand.\n"})
    client.run("draft.push_to_hub('org/card', token=TOKEN)")
    assert hub.files("org/card")["README.md"].endswith(b"By hand.\n")
    client.run("""
measured = Measurements([TaskResult('GSM8K', 3.5, 100)], command='make bench', hardware='a CPU', dtype='float32')
draft.push_to_hub('org/card', token=TOKEN, measurements=measured)
""")
    card = ModelCard(hub.files("org/card")["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 3.5
    with pytest.raises(ClientError, match="Pass either"):
        client.run(
            "from huggingface_hub import ModelCard; draft.push_to_hub('org/card', card=ModelCard('x'), license='mit')"
        )


def test_weights_under_other_names_do_not_stay(hub, client):
    client.run("draft.push_to_hub('org/shards', token=TOKEN, max_shard_size='2MB')")
    assert "model.safetensors.index.json" in hub.files("org/shards")
    assert client.run("result = same(EagleDraftModel.from_pretrained('org/shards'))")
    repository = hub.repositories["org/shards"]
    repository.commit("main", {**hub.files("org/shards"), "pytorch_model.bin": b"old", "notes.txt": b"mine"})
    client.run("draft.push_to_hub('org/shards', token=TOKEN)")
    assert set(hub.files("org/shards")) == FILES | {"notes.txt"}


def test_custom_generate(hub, client):
    """The head works from its repository alone; the caller has never imported it."""
    client.run("draft.push_to_hub('org/custom', token=TOKEN, custom_generate=True)")
    assert {"custom_generate/generate.py", "custom_generate/requirements.txt"} <= set(hub.files("org/custom"))
    target = str(CARDS / "demo-llama-10m")
    assert client.run(f"""
target = AutoModelForCausalLM.from_pretrained({target!r}).eval()
inputs = AutoTokenizer.from_pretrained({target!r})('def add', return_tensors='pt', return_token_type_ids=False)
drafted = target.generate(
    **inputs, custom_generate='org/custom', trust_remote_code=True, max_new_tokens=24, do_sample=False,
    return_dict_in_generate=True,
)
plain = target.generate(**inputs, max_new_tokens=24, do_sample=False)
result = torch.equal(drafted.sequences, plain) and drafted.target_forwards < 24
""")
