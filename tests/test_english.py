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
# Files with docstrings that still begin otherwise, and how many. Only ever remove from here.
STILL = {
    "drafting/auto_size.py": 18,
    "drafting/costs.py": 2,
    "drafting/coupling.py": 4,
    "drafting/draft_network.py": 10,
    "drafting/drafter.py": 19,
    "drafting/dynamic.py": 3,
    "drafting/head_rows.py": 3,
    "drafting/masks.py": 2,
    "drafting/retrieval.py": 5,
    "drafting/rotary_table.py": 2,
    "drafting/static.py": 1,
    "fast/compiled_head.py": 14,
    "generation/attaching.py": 1,
    "generation/call.py": 2,
    "generation/choosing.py": 6,
    "generation/converted_heads.py": 5,
    "generation/custom.py": 3,
    "generation/kept_rows.py": 2,
    "generation/memory.py": 1,
    "generation/output.py": 3,
    "generation/pairing.py": 5,
    "generation/seam.py": 2,
    "head/attention.py": 1,
    "head/decoder_layer.py": 2,
    "head/latent_attention.py": 1,
    "head/modeling_eagle.py": 10,
    "training/answers.py": 9,
    "training/arguments.py": 1,
    "training/distillation.py": 1,
    "training/durable_checkpoints.py": 8,
    "training/feature_store.py": 2,
    "training/frozen_target.py": 3,
    "training/losses.py": 8,
    "training/muon.py": 4,
    "training/new_head.py": 1,
    "training/objective.py": 6,
    "training/objectives/eagle1.py": 1,
    "training/objectives/eagle3.py": 1,
    "training/packing.py": 4,
    "training/packing_check.py": 4,
    "training/progress.py": 5,
    "training/publishing_trainer.py": 5,
    "training/run_facts.py": 1,
    "training/run_identity.py": 5,
    "training/samples.py": 4,
    "training/text_lengths.py": 2,
    "training/trainer.py": 15,
    "training/unrolling.py": 2,
    "training/vocabulary.py": 3,
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
