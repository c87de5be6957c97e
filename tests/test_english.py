"""Docstrings begin with a verb in the third person and its object, in the terms of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import eagle_hf


PACKAGE = Path(eagle_hf.__file__).parent
# Nouns that end like verbs do.
NOUNS = {
    "Answers", "Arguments", "As", "Columns", "Features", "Fields", "Figures", "Heads", "Hooks", "Its", "Keys", "Layers",
    "Losses", "Messages", "Nodes", "Options", "Paths", "Positions", "Prompts", "Rows", "Samples", "Settings",
    "Texts", "This", "Tokens", "Weights", "Words",
}  # fmt: skip


def docstrings() -> Iterator[tuple[str, ast.AST, str]]:
    """Every docstring of the package, with the file and what it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield str(path.relative_to(PACKAGE)), node, text


def is_property(node: ast.AST) -> bool:
    """Properties are named like what they are, as attributes."""
    names = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return any("property" in name or name.endswith(".setter") for name in names)


def begins_with_a_verb(text: str) -> bool:
    first = text.split()[0].strip("`.,:;")
    return re.fullmatch("[A-Z][a-z]+s", first) is not None and first not in NOUNS


def is_noun_clause(text: str) -> bool:
    return re.match(r"(Whether|What|How|Which|Where|When|Why|Args:|Told)\b", text) is not None


def test_docstrings_begin_with_a_verb():
    """Of functions and methods; modules and classes may be named by a noun, but not by half a sentence."""
    found = [
        f"{file}: {text.splitlines()[0]}"
        for file, node, text in docstrings()
        if (is_noun_clause(text) or (isinstance(node, ast.FunctionDef) and not begins_with_a_verb(text)))
        and not is_property(node)
    ]
    assert found == []


def test_what_a_verb_is():
    for text in ("Returns the tokens.", "Checks whether it fits.", "Says what was read."):
        assert begins_with_a_verb(text)
    for text in ("Return the tokens.", "Whether it fits.", "Tokens of a prompt.", "The tokens.", "`a` as words"):
        assert not begins_with_a_verb(text)


def test_every_docstring_has_a_first_sentence():
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not re.search(r"noqa: D20[05]", path.read_text()), path


def test_no_entry_of_a_docstring_stands_in_the_middle_of_a_line():
    """As it does where a paragraph was filled over it: no reference would show it."""
    for file, _, text in docstrings():
        assert not re.findall(r"^.*\S\. \w+ \(`\w+`(?:, \*optional\*[^)]*)?\): .*$", text, flags=re.MULTILINE), file


METAPHORS = (
    "at the door",
    "in vain",
    "told to",
    "without a word",
    "nobody else's",
    "stumble",
    "look over",
    "be rid of",
)


def test_terms_of_the_field_stand_where_metaphors_did():
    for path in sorted(PACKAGE.rglob("*.py")):
        text = " ".join(path.read_text().split())
        assert not [phrase for phrase in METAPHORS if phrase in text], path
