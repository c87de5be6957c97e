"""`synced_gpus`: ranks that accept different numbers of drafts still run the target's forwards together."""

import json
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from processes import start
from promises import PROMPT_LENGTHS, left_padded_prompts
from torch import nn

from eagle_hf.target.sharded_weights import whole
from eagle_hf.versions import cache_of


@pytest.mark.parametrize("kind", ["lockstep", "sharded"])
def test_two_ranks(tmp_path, kind):
    start([str(Path(__file__).parent / "run_synced.py"), str(tmp_path), kind], world_size=2, timeout=600)
    ranks = [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["forwards"] == ranks[1]["forwards"]
    assert ranks[0]["needed"] != ranks[1]["needed"]  # so that one of them had to wait
    for rank in ranks:
        assert rank["ours"] == [rank["plain"]] * 2
        assert rank["cached"] == [len(rank["plain"][0]) - 1] * 2


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-mixed"])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_waiting_for_other_ranks_changes_nothing(monkeypatch, name, lengths):
    target, inputs = tiny_target(name), left_padded_prompts(lengths)
    kwargs = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    plain = target.generate(**inputs, **kwargs)
    draft, waits = random_draft(target), []

    def others_are_unfinished(self, this_peer_finished, synced_gpus, device):
        assert synced_gpus
        waits.extend([1] if this_peer_finished else [])
        return not this_peer_finished or len(waits) < 4

    monkeypatch.setattr(type(target), "_has_unfinished_sequences", others_are_unfinished)
    forwards = []
    target.register_forward_pre_hook(lambda *args: forwards.append(1))
    target.generate(**inputs, **kwargs, assistant_model=draft, synced_gpus=True)  # probes as well
    del waits[:], forwards[:]
    ours = target.generate(**inputs, **kwargs, assistant_model=draft, synced_gpus=True)
    assert len(forwards) == ours.target_forwards + 3 + 1  # three waits, and one for rows that ended early elsewhere
    assert torch.equal(ours.sequences, plain.sequences)
    for expected, got in zip(cache_of(plain).layers, cache_of(ours).layers, strict=True):
        torch.testing.assert_close(got.keys, expected.keys, atol=5e-4, rtol=1e-3)


class TestWhole:
    def test_whole_modules_stay_what_they_are(self):
        embedding = nn.Embedding(5, 3)
        assert whole(embedding) is embedding
        assert whole(None) is None

    def test_weights_partitioned_by_deepspeed_are_refused(self):
        embedding = nn.Embedding(5, 3)
        embedding.weight.ds_id = 0
        with pytest.raises(ValueError, match="target's Embedding, which DeepSpeed ZeRO-3 has spread"):
            whole(embedding)
