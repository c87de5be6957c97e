"""The table of layouts in the documentation says what the code does."""

import importlib.util
from pathlib import Path


def test_the_table_is_up_to_date():
    path = Path(__file__).parent / "layouts_table.py"
    spec = importlib.util.spec_from_file_location("layouts_table", path)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    page = table.PAGE.read_text()
    assert table.render(page) == page, "run `python tests/checkpoints/layouts_table.py`"
