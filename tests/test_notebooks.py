"""What can be said of notebooks without running them; `make test` runs them too."""

import ast
import re
import sys
from pathlib import Path

import pytest


nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "scripts"))
from notebooks import STAMP, clean, head_hash, without_paths  # noqa: E402


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def test_it_is_sound(notebook):
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert cell.execution_count is None


def test_no_path_of_a_machine_and_no_error_is_stored(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.<])/(work|home|root|tmp|Users|usr|opt)/", text)
    assert '"output_type": "error"' not in text
    assert path.stat().st_size < 500_000


def test_stored_outputs_are_of_the_demo_head_that_is_here(notebook, path):
    if any(cell.get("outputs") for cell in notebook.cells):
        assert notebook.metadata[STAMP] == head_hash(), f"{path.name} shows another demo head: run `make notebooks`."


def test_links_lead_somewhere(notebook, path):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source):
                assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_readme_lists_it(path):
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_cleaning_leaves_results_only():
    cell = nbformat.v4.new_code_cell("x", execution_count=3)
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="100%"),
        nbformat.v4.new_output("stream", name="stdout", text=f"{ROOT}/hub_cards"),
        nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}),
        nbformat.v4.new_output("execute_result", data={"text/html": f"<b>{ROOT}</b>"}, execution_count=3),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    clean(notebook)
    assert [output.output_type for output in cell.outputs] == ["stream", "execute_result"]
    assert cell.outputs[0].text == "hub_cards"
    assert cell.outputs[1].data == {"text/html": "<b></b>"}
    assert without_paths("nothing") == "nothing"
    assert notebook.metadata[STAMP] == head_hash()
