"""
Run the notebooks and keep what they print, for readers on the Hub and GitHub: `make notebooks`. Run it on an idle
machine, after any change of the demo pair; a test says when it is due. Paths of the machine are cut off, and progress
bars left out.
"""

import argparse
import hashlib
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[1]
HEAD = ROOT / "hub_cards" / "EAGLE3-demo-llama-10m" / "model.safetensors"
STAMP = "demo_head_sha256"  # in the metadata of a notebook: the head whose outputs it shows


def head_hash() -> str:
    """Of the demo head's weights."""
    return hashlib.sha256(HEAD.read_bytes()).hexdigest()


def is_progress(output: dict) -> bool:
    """Whether an output shows progress, or what libraries log, and not a result."""
    return output.get("name") == "stderr" or any("widget" in kind for kind in output.get("data", {}))


def without_paths(text: str) -> str:
    """Text without the folders that lead to the repository."""
    return re.sub(rf"{re.escape(str(ROOT))}/?", "", text)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leave results only, without counters and times."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [output for output in cell.outputs if not is_progress(output)]
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = None
            if "text" in output:
                output["text"] = without_paths(output["text"])
            for kind, value in output.get("data", {}).items():
                if isinstance(value, str) and kind != "image/png":
                    output["data"][kind] = without_paths(value)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[STAMP] = head_hash()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks to run (default: all)")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a cell may take (default: 1800)")
    args = parser.parse_args()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if args.names and path.stem not in args.names:
            continue
        print(f"{path.name} ...", flush=True)
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=args.timeout,
            skip_cells_with_tag="skip-execution",
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.execute()
        clean(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
