"""`generate` leaves the head as it is. Where it drafts in another dtype, a copy is kept that follows every change."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import random_draft
from safetensors.torch import save_model
from torch import nn

import eagle_hf
from eagle_hf.generation.converted_heads import _COPIES, align_draft


PROMPTS = torch.tensor([[5, 17, 40, 8, 33, 71], [9, 61, 3, 27, 80, 12]])
OPTIONS = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
HEADS = {
    "eagle-3": {},
    "eagle-1": {"eagle_version": 1},
    "p-eagle": {"parallel_drafting": True, "mask_token_id": 5},
    "latent attention": {
        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}  # fmt: skip


@pytest.fixture
def target():
    return tiny_target("llama").to(torch.bfloat16)


@pytest.fixture
def draft():
    return make_draft()


def make_draft(**config):
    draft = random_draft(tiny_target("llama").float(), **config)
    if draft.config.parallel_drafting:
        return draft
    return use_options(draft, num_assistant_tokens=6, draft_depth=3, draft_width=2)


def generate(target, draft, **options):
    mask = torch.ones_like(PROMPTS)
    return target.generate(PROMPTS, attention_mask=mask, assistant_model=draft, **(OPTIONS | options))


def likeness(draft):
    """All that there is to a head: its modules with their attributes, and its tensors with their memory and values."""
    modules = {
        name: {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
        for name, module in draft.named_modules()
    }
    tensors = [*draft.named_parameters(), *draft.named_buffers()]
    return modules, {
        name: (id(each), each.data_ptr(), each._version, each.dtype, each.device, each.requires_grad, each.tolist())
        for name, each in tensors
    }


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_head_stays_as_it_is(head, dtype):
    draft = make_draft(**HEADS[head]).train(dtype == torch.float16)
    before = likeness(draft)
    generate(tiny_target("llama").to(dtype), draft)
    assert likeness(draft) == before
    assert len(_COPIES.get(draft, {})) == (dtype != torch.float32)


def test_what_is_saved_afterwards_is_what_was_loaded(target, draft, tmp_path):
    draft.save_pretrained(tmp_path / "before")
    generate(target, draft)
    draft.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after


def step(draft):
    optimizer = torch.optim.SGD(draft.parameters(), lr=0.1)
    draft.fc.weight.square().sum().backward()
    optimizer.step()


def load(draft):
    draft.load_state_dict({name: tensor * 1.5 for name, tensor in draft.state_dict().items()})


def adapt(draft):
    """As PEFT does it: a layer is replaced by one that holds it."""
    draft.fc = nn.Sequential(draft.fc, nn.Linear(32, 32))


@torch.no_grad()
def edit(draft):
    draft.layers[0].mlp.up_proj.weight.mul_(2)


def replace(draft):
    draft.norm.weight = nn.Parameter(torch.full((32,), 3.0))


CHANGES = {
    "an optimizer's step": step,
    "load_state_dict": load,
    "load_state_dict(assign)": lambda draft: draft.load_state_dict(
        {name: tensor + 1 for name, tensor in draft.state_dict().items()}, assign=True
    ),
    "an edit in place": edit,
    "an edit of data": lambda draft: draft.layers[0].self_attn.q_proj.weight.data.mul_(2),
    "one value of data": lambda draft: draft.fc.weight.data.__setitem__((17, 23), 5.0),
    "other data": lambda draft: setattr(draft.lm_head.weight, "data", torch.ones_like(draft.lm_head.weight)),
    "a replaced parameter": replace,
    "an adapter": adapt,
    "moving": lambda draft: draft.double(),
    "an attribute": lambda draft: setattr(draft.layers[0], "norm_before_residual", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_copy_follows_every_change(target, draft, change):
    generate(target, draft)
    first = align_draft(target, draft)
    assert align_draft(target, draft) is first
    CHANGES[change](draft)
    generate(target, draft)
    second = align_draft(target, draft)
    assert second is not first
    assert len(_COPIES[draft]) == 1
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in draft.named_parameters()}
    got = dict(second.named_parameters())
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert second.layers[0].norm_before_residual == draft.layers[0].norm_before_residual


def test_heads_that_agree_have_no_copy(draft):
    target = tiny_target("llama").float()
    assert align_draft(target, draft) is draft
    other = align_draft(tiny_target("llama").double(), draft)
    assert align_draft(target, draft) is draft
    assert align_draft(tiny_target("llama").double(), draft) is other  # for another target
    draft.fc.weight.data.zero_()
    assert align_draft(target, draft) is draft
    assert not _COPIES[draft]  # what has changed is not kept


def test_copies_go_with_the_head(target):
    draft = make_draft()
    generate(target, draft)
    copied = align_draft(target, draft)
    parts = [weakref.ref(part) for part in (*copied.modules(), *copied.parameters())]
    gc.disable()
    try:
        del draft, copied
        assert [part() for part in parts if part() is not None] == []
    finally:
        gc.enable()


def test_copies_are_forgotten_on_request(target, draft):
    first = weakref.ref(align_draft(target, draft))
    eagle_hf.forget(draft)
    assert first() is None
    assert draft not in _COPIES


def test_tensors_that_are_as_they_should_be_are_shared(target, draft):
    """Frequencies of the rotary embedding stay float32; what is float already is not copied."""
    draft.norm.to(torch.bfloat16)
    copied = align_draft(target, draft)
    assert copied.norm.weight.data_ptr() == draft.norm.weight.data_ptr()
    assert copied.rotary_emb.inv_freq.dtype == torch.float32


def test_a_head_in_training_drafts_without_dropout(draft):
    """There is none in a head, but adapters have some."""
    target = tiny_target("llama").float()
    draft.fc = nn.Sequential(draft.fc, nn.Dropout(0.5))
    draft.train()
    torch.manual_seed(0)
    outputs = [generate(target, draft, return_dict_in_generate=True, output_scores=True) for _ in range(2)]
    assert draft.training
    assert align_draft(target, draft).fc[0].weight.data_ptr() == draft.fc[0].weight.data_ptr()
    assert outputs[0].acceptance_lengths == outputs[1].acceptance_lengths
    trees = [
        [tree.tokens.tolist() for tree, _ in generate_trees(target, each)]
        for each in (draft, copy.deepcopy(draft).eval())
    ]
    assert trees[0] == trees[1]


def generate_trees(target, draft):
    use_options(draft, num_assistant_tokens=6, draft_depth=3, draft_width=2, output_draft_trees=True)
    return generate(target, draft, return_dict_in_generate=True).draft_trees


def test_several_threads_with_targets_of_several_dtypes(draft):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.bfloat16]
    targets = [tiny_target("llama").to(dtype) for dtype in dtypes]
    plain = [generate(target, None).tolist() for target in targets]
    before, results = likeness(draft), [[] for _ in targets]

    def work(target, result):
        for _ in range(3):
            result.append(generate(target, draft).tolist())

    threads = [threading.Thread(target=work, args=pair) for pair in zip(targets, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result) for result in results] == [3] * len(targets)
    for dtype, text, result in zip(dtypes, plain, results, strict=True):
        assert dtype == torch.bfloat16 or result == [text] * 3
    assert likeness(draft) == before
    assert len(_COPIES[draft]) == 2


def test_the_head_can_be_saved_in_every_way_afterwards(draft, tmp_path):
    """Ways that look at which memory weights share: weights of a head share none."""
    for target in (tiny_target("llama"), tiny_target("llama").to(torch.bfloat16)):
        generate(target, draft)
        save_model(draft, str(tmp_path / "head.safetensors"))
        assert len({parameter.untyped_storage().data_ptr() for parameter in draft.parameters()}) == len(
            list(draft.parameters())
        )
