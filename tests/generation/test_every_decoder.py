"""
What docs/architectures.md says of the decoders of `transformers` is so, and the text with drafts is that of plain
`generate` for each that is not refused. `make architectures` tries all of them, the default suite a sample.
"""

import os
import re

import architectures_table as page
import pytest
import torch
import transformers
from architecture_verdicts import REFUSED, TREES, features_agree, texts, verdict
from doubles import inference_tensors
from every_decoder import NotBuiltError, decoders, tiny_decoder
from transformers.utils import logging


SAMPLE = [
    "bamba", "bloom", "camembert", "deepseek_v32", "deepseek_v4", "gemma2",
    "gemma4_text: shared keys and values", "gpt_neo", "gpt_oss", "jamba", "lfm2",
    "llama4_text", "minimax_m3_vl_text: sparse attention", "mpt", "qwen3_5_text", "zamba2",
]  # fmt: skip
TABLE = page.PAGE.read_text()
IS_SAME_VERSION = transformers.__version__ == page.version(TABLE)
TYPES = decoders() if os.environ.get("EAGLE_HF_EVERY_DECODER") else [name for name in SAMPLE if name in decoders()]


@pytest.mark.parametrize("model_type", TYPES)
def test_the_verdict_is_that_of_the_table_and_the_text_exact(model_type):
    logging.set_verbosity_error()  # tiny vocabularies do not hold the special tokens of large ones
    try:
        target = tiny_decoder(model_type)
    except NotBuiltError as error:
        if IS_SAME_VERSION:
            assert page.table(TABLE)[model_type] == page.NOT_TRIED
        pytest.skip(str(error))
    verifies, reason = verdict(target)
    if IS_SAME_VERSION:  # others may verify more, or less
        assert verifies == page.table(TABLE)[model_type]
    if verifies == REFUSED:
        assert re.search("without the draft|streams", reason)
        return
    assert features_agree(target)
    for options in ({"do_sample": False}, {"do_sample": False, "rows": 2}, {"do_sample": True, "seed": 1}):
        plain, ours, forwards = texts(target, verifies, **options)
        assert torch.equal(plain, ours), options
        assert forwards < plain.shape[1] - 11
    assert not inference_tensors(target)


@pytest.mark.skipif(not IS_SAME_VERSION, reason="the table was made with another version of transformers")
def test_the_table_has_every_model_type():
    assert list(page.table(TABLE)) == decoders()


def test_most_decoders_verify_trees():
    assert list(page.table(TABLE).values()).count(TREES) >= 110
