"""Execute a notebook of the examples. `python -m tests.examples.notebook` stores its outputs in the file."""

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "train_to_engine.ipynb"
LIMIT_S = 500
"""Maximum time of a cell (s)."""


def execute(notebook: Any, folder: Path) -> None:
    """Run all cells in a folder, and replace their outputs.

    Raises:
        CellExecutionError: a cell raised an error.
    """
    NotebookClient(notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()


def cells(path: Path = NOTEBOOK) -> Any:
    """Return the notebook of a file."""
    return nbformat.read(path, as_version=4)


def kinds(notebook: Any) -> list[set[str]]:
    """Return the kinds of output of each cell, such as `stdout` and `image/png`.

    Messages on stderr are left out, because they depend on the machine.
    """
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = cell["outputs"]
            found.append({kind for one in outputs for kind in one.get("data", {one.get("name"): ""})} - {"stderr"})
    return found


def main() -> None:
    notebook = cells()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    for cell in notebook.cells:
        cell.metadata.clear()  # times of the execution
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
