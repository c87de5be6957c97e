"""
The table of heads that were run in vLLM in docs/checkpoints.md, from benchmarks/results/engines.json.
`python tests/engines/engines_table.py` writes it.
"""

import json
import re
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from engines.engine_run import READ_BY_VLLM, RESULTS  # noqa: E402


PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- engines: written by tests/engines/engines_table.py -->", "<!-- /engines -->"


def _cell(row: dict) -> str:
    if "chains" in row:
        said = ", with a warning" if row["outcome"] == "different" else ""
        return f"{row['chains'][0]} of {row['chains'][1]}{said}"
    if "written_all_the_same" in row:
        same, of = row["written_all_the_same"]["chains"]
        return f"refused ({same} of {of})"
    return {"refused": "refused", "does not load": "does not load there", "not run": "not run"}[row["outcome"]]


def render(page: str) -> str:
    """The page with its table made anew."""
    found = json.loads(RESULTS.read_text())
    versions = found["versions"]
    lines = [
        f"vLLM {versions['vllm']}, eagle_hf with transformers {versions['transformers']}:",
        "",
        f"| head | {' | '.join(f'`{layout}`' for layout in READ_BY_VLLM)} |",
        "|---|" + "---|" * len(READ_BY_VLLM),
    ]
    heads: dict[str, dict[str, str]] = {}
    drawn = {layout: [0, 0] for layout in READ_BY_VLLM}
    for row in found["rows"]:
        if row["head"].startswith("drawn"):
            drawn[row["layout"]][0] += row["outcome"] == "identical"
            drawn[row["layout"]][1] += row["outcome"] == "refused"
        else:
            heads.setdefault(row["head"], {})[row["layout"]] = _cell(row)
    lines += [f"| {name} | {' | '.join(cells.get(x, '') for x in READ_BY_VLLM)} |" for name, cells in heads.items()]
    together = [f"{same} heads the same, {refused} refused" for same, refused in drawn.values()]
    lines.append(f"| options drawn together | {' | '.join(together)} |")
    table = "\n".join([BEGIN, *lines, END])
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda match: table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
