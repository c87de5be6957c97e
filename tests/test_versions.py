"""An unsupported `transformers` is refused on import, with what to do."""

import re
import runpy
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from eagle_hf import versions


def test_an_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.17, and 4\.57\.1 is installed.*pip install"):
        runpy.run_path(versions.__file__)


def test_the_range_is_the_one_that_the_package_asks_for():
    requirements = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"transformers{versions.SUPPORTED}"' in requirements


def test_the_pinned_version_is_the_newest_that_the_package_allows():
    """A plain `pip install` gets the newest: that is what the tests have to run with."""
    pinned = re.search(
        r"^transformers==([\d.]+)$", (Path(__file__).parents[1] / "constraints.txt").read_text(), re.MULTILINE
    )
    newest, below = Version(pinned[1]).release[:2], Version(versions.BELOW).release[:2]
    assert (newest[0], newest[1] + 1) == below
