"""Rules of the house that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import eagle_hf


ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "eagle_hf").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level modules that a file imports, `.` for its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", ["tree.py", "verification.py"])
def test_the_core_imports_only_torch(name):
    assert imports(ROOT / "src" / "eagle_hf" / name) <= {"torch", "collections", "dataclasses"}


def test_only_generation_touches_the_internals_of_generation():
    for path in SOURCES:
        if "generation" not in path.parts:
            text = path.read_text()
            for internal in ("GenerationMixin", "_prefill", "_assisted_decoding", "generation.utils"):
                assert internal not in text, path


def test_every_public_name_is_documented():
    for name in eagle_hf.__all__:
        assert (getattr(eagle_hf, name).__doc__ or "").strip(), name
    pages = " ".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    missing = [name for name in eagle_hf.__all__ if name not in pages]
    assert not missing


def test_modules_stay_small():
    sizes = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: size for name, size in sizes.items() if size > 480} == {}


def test_nothing_prints_but_the_command_line():
    for path in SOURCES:
        if "cli" not in path.parts:
            assert not re.search(r"^\s*print\(", path.read_text(), flags=re.MULTILINE), path


def test_no_path_of_a_machine_is_committed():
    pattern = re.compile(r"(?<![\w.])/(work|home|root|tmp/[a-z])/")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ""} and path.is_file() and path != Path(__file__):
            assert not pattern.search(path.read_text(errors="ignore")), name
