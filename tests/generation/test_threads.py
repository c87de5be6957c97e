"""Several threads generate with one target and one head: each gets its text, and none sees the target changed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft


IDS = torch.randint(3, 90, (6, 9), generator=torch.Generator().manual_seed(0))
OPTIONS = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}


def what_threads_see(target, draft, num_threads=2):
    """Lets threads generate while another one reads the config; which implementations of attention it has seen."""
    plain, seen, is_done = [target.generate(ids[None], **OPTIONS) for ids in IDS], set(), threading.Event()

    def watch():
        while not is_done.is_set():
            seen.add(target.config._attn_implementation)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            ours = list(pool.map(lambda ids: target.generate(ids[None], **OPTIONS, assistant_model=draft), IDS))
    finally:
        is_done.set()
        watcher.join()
    assert all(map(torch.equal, plain, ours))
    return seen


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_thread_sees_another_attention_implementation(name, implementation):
    target = tiny_target(name)
    target.set_attn_implementation(implementation)
    draft = use_options(random_draft(target), draft_tree="dynamic", num_assistant_tokens=6, draft_depth=3)
    assert what_threads_see(target, draft) == {implementation}
