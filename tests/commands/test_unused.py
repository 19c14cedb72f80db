"""Options that cannot apply are refused, or said to be of no use, before any work."""

from pathlib import Path

import numpy as np
import pytest

from tests.tools import e3d


def refused(*arguments: object) -> str:
    """Return the error of a command that is refused."""
    return e3d(*arguments, code=2).stderr.splitlines()[-1]


@pytest.mark.parametrize("more", [[], ["--streaming"]])
@pytest.mark.parametrize("option", [["--layout", "NTHW"], ["--skip-bad"]])
def test_options_for_files_are_refused_where_clips_are_generated(
    option: list[str], more: list[str], exported: Path
) -> None:
    error = f"Error: moving-mnist: is generated, so no file is read; leave {option[0]} out, or give --data SOURCE"
    assert refused("evaluate", exported / "tiny.e3d", *option, *more) == error


def test_options_for_files_are_refused_where_a_run_reads_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = refused("train", "-o", run, "--layout", "NTHW", "--skip-bad", "--valid-data", "moving-mnist")
    assert "is generated, so no file is read; leave --layout and --skip-bad out" in words
    assert not run.exists()


@pytest.mark.parametrize("where", [["--data", "moving-mnist", "--data"], ["--valid-data"]])
def test_options_for_files_apply_to_one_of_several_sources(where: list[str], tmp_path: Path) -> None:
    """It is read as they say, and does not fit."""
    np.save(tmp_path / "clips.npy", np.zeros((2, 20, 8, 8), np.uint8))
    words = refused("train", "-o", tmp_path / "run", *where, tmp_path / "clips.npy", "--layout", "NTHW")
    assert "clips.npy: got [2, 20, 8, 8], expected NTHW with H 64, W 64 and C 1" in words
