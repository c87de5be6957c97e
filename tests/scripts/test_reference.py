"""The reference is what the docstrings say, names everything that is public, and its examples run."""

import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

import eagle_hf


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from reference import MODULES, PAGE, public_names, to_markdown, write  # noqa: E402


def test_the_page_is_up_to_date():
    tested = re.search(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    if transformers.__version__ != tested:
        pytest.skip("what classes inherit differs between versions of transformers")
    assert PAGE.read_text(encoding="utf-8") == write(), "Run `make reference`."


def test_every_public_name_has_its_section():
    text = PAGE.read_text(encoding="utf-8")
    for name in MODULES:
        module = sys.modules[name]
        for public in public_names(module):
            assert not callable(getattr(module, public)) or f"### {public}\n" in text, public


def test_every_field_of_a_public_class_has_its_entry():
    text, missing = PAGE.read_text(encoding="utf-8"), []
    classes = [getattr(sys.modules[name], public) for name in MODULES for public in public_names(sys.modules[name])]
    for cls in filter(inspect.isclass, classes):
        if issubclass(cls, torch.nn.Module):
            continue  # there, annotations name buffers
        section = text.partition(f"### {cls.__name__}\n")[2].partition("\n### ")[0]
        fields = [field for field in vars(cls).get("__annotations__", {}) if not field.startswith("_")]
        missing += [f"{cls.__name__}.{f}" for f in fields if not re.search(rf"(?m)^\* `[\w, ]*\b{f}\b", section)]
    assert " ".join(missing) == ""


def test_no_section_is_left_unread():
    """A section of a docstring that was not understood would stand there as text."""
    text = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"^ *(?:Args|Returns|Raises|Example):", text, flags=re.MULTILINE)


def test_examples_run(tmp_path, monkeypatch):
    (tmp_path / "hub_cards").symlink_to(ROOT / "hub_cards")
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    blocks = re.findall(r"^ *```pycon\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for number, block in enumerate(blocks):
        names = {name: getattr(eagle_hf, name) for name in eagle_hf.__all__}
        names |= {"accepted_path": __import__("eagle_hf.verification", fromlist=["x"]).accepted_path}
        runner.run(doctest.DocTestParser().get_doctest(block, names, f"example {number}", str(PAGE), 0))
    assert runner.failures == 0


def test_docstrings_become_markdown():
    docstring = """
    What it does.

    Args:
        a ([`Thing`], *optional*): One thing
            of two.
        b, c (`int` or (`str`, `int`)):
            Two more.

    Returns:
        `int`: A number.

    Raises:
        `ValueError`: never.

    Then:

    ```text
    x    y
    ```
    """
    assert to_markdown(docstring) == (
        "What it does.\n\n**Args:**\n\n* `a` (`Thing`, *optional*): One thing\n  of two.\n"
        "* `b, c` (`int` or (`str`, `int`)):\n  Two more.\n\n**Returns:**\n\n`int`: A number.\n\n"
        "**Raises:**\n\n* `ValueError`: never.\n\nThen:\n\n```text\nx    y\n```"
    )
