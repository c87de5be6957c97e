import json
import logging as std_logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import target_dtype
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from eagle_hf import DraftOptions, EagleDraftModel


torch.set_num_threads(1)  # tiny models; tests run side by side
logging.disable_progress_bar()
target_dtype.install()

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what sweeps over a whole kind, such as all decoders, or runs another engine, unless `make` asks for it."""
    target_dtype.skip_exceptions(items)
    for marker, variable, reason in (
        ("sweep", "EAGLE_HF_EVERY_DECODER", "a sweep over a whole kind: `make architectures` runs it"),
        ("engine", "EAGLE_HF_VLLM_PYTHON", "runs vLLM in an environment of its own: `make test-engines`"),
    ):
        for item in items:
            if item.get_closest_marker(marker) and not os.environ.get(variable):
                item.add_marker(pytest.mark.skip(reason=reason))


class GoldenCase:
    """One run of the reference implementation."""

    def __init__(self, path: Path):
        self.path = path
        self.draft, *shape = re.fullmatch(r"(.+?)_t(\d+)_d(\d+)_k(\d+).*", path.stem).groups()
        self.total, self.depth, self.top_k = map(int, shape)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @property
    def options(self) -> DraftOptions:
        return DraftOptions(
            num_assistant_tokens=self.total - 1,
            draft_depth=self.depth + 1,
            draft_width=self.top_k,
            output_draft_trees=True,
        )

    def __repr__(self) -> str:
        return self.path.stem


class OldWords(std_logging.Handler):
    """Collects the notices in which `transformers` asks for the new name of a cache."""

    def __init__(self):
        super().__init__()
        self.notices: list[str] = []

    def emit(self, record: std_logging.LogRecord) -> None:
        if "`past_key_values`/`cache_params` are deprecated" in record.getMessage():
            self.notices.append(f"{record.pathname}:{record.lineno}")


@pytest.fixture(autouse=True)
def old_words():
    """Fails a test in which anybody reads an output under the name that transformers 5.24 replaced: it logs only."""
    handler, logger = OldWords(), logging.get_logger("transformers")
    logging.warning_once.cache_clear()
    logger.addHandler(handler)
    yield handler.notices
    logger.removeHandler(handler)
    assert not handler.notices


@pytest.fixture(autouse=True)
def one_thread():
    """Commands that a test runs in this process set threads and verbosity, also for the tests after it."""
    verbosity = logging.get_verbosity()
    yield
    torch.set_num_threads(1)
    logging.set_verbosity(verbosity)


GOLDEN_CASES = [GoldenCase(path) for path in sorted((GOLDEN / "cases").glob("*.json"))]


@pytest.fixture(scope="session")
def golden_target() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "targets" / "A").eval()


@pytest.fixture(params=GOLDEN_CASES, ids=repr)
def golden_case(request) -> GoldenCase:
    return request.param


def golden_draft(name: str) -> EagleDraftModel:
    draft = EagleDraftModel.from_pretrained(GOLDEN / "drafts" / name)
    draft.generation_config.draft_tree = "dynamic"  # the reference's; left open, it would be sized on a CPU
    return draft


def use_options(draft: EagleDraftModel, **options) -> EagleDraftModel:
    """Set how the draft drafts."""
    draft.generation_config = DraftOptions(**options).to_generation_config()
    return draft
