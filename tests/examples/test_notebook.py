"""The notebook runs from training to an engine, and its stored outputs are those that its code prints."""

from pathlib import Path

import pytest

from tests.examples.notebook import cells, execute, kinds


@pytest.mark.slow
def test_the_notebook_runs_and_its_outputs_are_up_to_date(tmp_path: Path) -> None:
    """Only the kinds of output are compared, because numbers depend on the machine."""
    notebook = cells()
    stored = kinds(notebook)
    execute(notebook, tmp_path)
    assert kinds(notebook) == stored
    assert (tmp_path / "film.e3d" / "manifest.json").exists()


def test_the_stored_outputs_contain_a_picture_and_no_path_of_a_machine() -> None:
    notebook = cells()
    assert any("image/png" in one for one in kinds(notebook))
    text = "".join(one.get("text", "") for cell in notebook.cells for one in cell.get("outputs", ()))
    assert "/tmp/" not in text
    assert "/home/" not in text
