"""Rules of the house that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import eagle_hf


ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "eagle_hf").rglob("*.py"))


# From the lowest to the highest; a file imports files of its own layer and of lower ones.
LAYERS = (
    ("lazy", "versions", "hub_names", "tree", "verification"),
    ("configuration_eagle", "draft_options"),
    ("cache",),
    ("target",),
    ("hub",),
    ("checkpoints",),
    ("head",),
    ("drafting",),
    ("fast",),
    ("generation",),
    ("loading",),
    ("data",),
    ("inspection", "visualization"),
    ("evaluation", "training"),
    ("cli",),
)
# Arrows that run back up, and are due to go. This list only shrinks.
UPWARDS: set[tuple[str, str]] = set()
# Modules that are in a circle of imports or above one that is. Also due to go.
CIRCLES: set[str] = set()

MODULES = {".".join(path.relative_to(ROOT / "src" / "eagle_hf").with_suffix("").parts): path for path in SOURCES}


def arrows(module: str) -> set[str]:
    """Modules of this package that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = module.split(".")[: -node.level]
            base = [*folder, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                names = [".".join([*base, alias.name]), ".".join([*base, alias.name, "__init__"]), ".".join(base)]
                names.append(".".join([*base, "__init__"]))
                found.add(next(name for name in names if name in MODULES))
    return found


def layer(module: str) -> int:
    """Which layer a module lies in; the package itself lies above all of them."""
    top = module.partition(".")[0]
    return next((floor for floor, rooms in enumerate(LAYERS) if top in rooms), len(LAYERS))


def test_layers_import_downwards_only():
    found = {(m, other) for m in MODULES for other in arrows(m) if layer(other) > layer(m)}
    assert found <= UPWARDS, sorted(found - UPWARDS)
    assert found >= UPWARDS, f"remove from the list: {sorted(UPWARDS - found)}"


def test_the_map_of_contributors_names_every_room_from_the_highest_layer_to_the_lowest():
    drawn = (ROOT / "CONTRIBUTING.md").read_text().split("```text\n")[1].split("```")[0]
    names = " ".join(line[:41] for line in drawn.splitlines()).split()
    rooms = [name.removesuffix("/").removesuffix(".py") for name in names if name != "eagle_hf_command.py"]
    assert set(rooms) == {module.partition(".")[0] for module in MODULES} - {"__init__"}
    floors = [layer(room) for room in rooms]
    assert floors == sorted(floors, reverse=True)


def test_no_module_imports_itself_over_others():
    waiting = {m: arrows(m) - CIRCLES - {m} for m in MODULES if m not in CIRCLES}
    while free := [m for m, others in waiting.items() if not others]:
        for m in free:
            del waiting[m]
        for others in waiting.values():
            others.difference_update(free)
    assert waiting == {}, "a circle of imports"


def test_few_modules_lie_loose():
    assert len([m for m in MODULES if "." not in m and m != "__init__"]) <= 7


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


def test_only_two_rooms_touch_the_internals_of_generation():
    for path in SOURCES:
        if not {"generation", "target"} & set(path.parts):
            text = path.read_text()
            for internal in ("GenerationMixin", "._prefill(", "_assisted_decoding", "generation.utils"):
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
