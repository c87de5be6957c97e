"""The list of tests that bfloat16 targets cannot run only shrinks, and what `make test-bf16` rests on holds."""

import ast
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from bfloat16_exceptions import EXCEPTIONS, reason_of
from target_dtype import NAME, TARGET_DTYPE, exact_attention


TESTS = Path(__file__).parent
MOST = 41  # entries; lower it with every one that is mended, never raise it


def test_the_list_only_shrinks():
    assert len(EXCEPTIONS) <= MOST
    assert all(len(reason) > 20 for reason in EXCEPTIONS.values())


@pytest.mark.parametrize("entry", EXCEPTIONS)
def test_every_entry_is_the_beginning_of_a_test_that_exists(entry):
    file, *names = entry.split("[")[0].split("::")
    assert (TESTS / file).is_file()
    tree = ast.parse((TESTS / file).read_text())
    for name in names:
        found = [node for node in tree.body if getattr(node, "name", "").startswith(name)]
        assert found, name
        tree = found[0]


def test_a_test_has_the_reason_of_its_beginning(monkeypatch):
    monkeypatch.setitem(EXCEPTIONS, "folder/test_file.py::test_one", "a reason that is long enough")
    assert reason_of("tests/folder/test_file.py::test_one[a]") == "a reason that is long enough"
    assert reason_of("tests/folder/test_file.py::test_two") == ""


def test_targets_have_the_dtype():
    assert tiny_target("llama").dtype == TARGET_DTYPE
    assert tiny_target("llama", dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_rounds_nodes_as_it_rounds_a_token_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(1, 4, n, 8, generator=generator).to(dtype) for n in (9, 29))
    mask = torch.ones(9, 29, dtype=torch.bool).tril(20)
    together = exact_attention(query, keys, keys, attn_mask=mask[None, None])
    for i in range(9):
        seen = keys[:, :, : 21 + i]
        assert torch.equal(together[:, :, i : i + 1], exact_attention(query[:, :, i : i + 1], seen, seen))


@pytest.mark.skipif(NAME == "float32", reason="float32 products round differently by their number of rows")
@pytest.mark.parametrize("size", [32, 256, 1024])
def test_products_round_rows_as_they_round_a_row_alone(size):
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, size, generator=generator).to(TARGET_DTYPE) for n in (17, 96))
    alone = torch.cat([torch.nn.functional.linear(row[None], weight) for row in rows])
    assert torch.equal(torch.nn.functional.linear(rows, weight), alone)
