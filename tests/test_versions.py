"""An unsupported `transformers` is refused on import, with what to do."""

import runpy
from pathlib import Path

import pytest
import transformers

from eagle_hf import versions


def test_an_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.17, and 4\.57\.1 is installed.*pip install"):
        runpy.run_path(versions.__file__)


def test_the_oldest_version_is_the_one_that_the_package_asks_for():
    requirements = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"transformers>={versions.OLDEST},<6"' in requirements
