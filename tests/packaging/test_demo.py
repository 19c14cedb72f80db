"""The wheel with the extra `demo`, which is all that `e3d demo` needs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.environments import installed, run

SECONDS = 900
"""Time limit of the demo, which takes 90 s on two idle cores."""


@pytest.fixture
def demo_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the Python of an environment that has the wheel with the extra `demo`; remove it afterwards (1.7 GB)."""
    python = installed(tmp_path_factory, "demo")
    yield python
    shutil.rmtree(python.parents[1])


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo_and_its_bundles(demo_python: Path, tmp_path: Path) -> None:
    full = run(demo_python, "e3d", "demo", "--full", cwd=tmp_path)
    assert full.returncode == 5
    assert "run e3d from a checkout of the repository" in full.stderr
    assert list(tmp_path.iterdir()) == []

    demo = run(demo_python, "e3d", "demo", "-o", "out", cwd=tmp_path, seconds=SECONDS)
    assert demo.returncode == 0, demo.stderr
    assert "built but not run" in demo.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "digits.e3d", "film.e3d", "film.gif"}

    verify = run(demo_python, "e3d", "verify", "out/film.e3d", cwd=tmp_path)
    assert verify.returncode == 0, verify.stderr

    arguments = ("out/film.e3d", "out/pedestrians.mp4", "--horizon", "1", "--jsonl", "-")
    stream = run(demo_python, "e3d", "stream", *arguments, cwd=tmp_path)
    assert stream.returncode == 0, stream.stderr
    assert len(stream.stdout.splitlines()) == 150
