"""The wheel with the extra `demo`, which is all that `e3d demo` needs."""

from pathlib import Path

import pytest

from tests.packaging.environments import installed, run

pytestmark = pytest.mark.slow
SECONDS = 900
"""Time limit of the demo, which takes 90 s on two idle cores."""


@pytest.fixture(scope="session")
def demo_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has the wheel with the extra `demo`."""
    return installed(tmp_path_factory, "demo")


@pytest.fixture(scope="module")
def output(demo_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of `e3d demo`."""
    folder = tmp_path_factory.mktemp("demo")
    done = run(demo_python, "e3d", "demo", "-o", "out", cwd=folder, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "PASS the exported graphs compute what PyTorch computes" in done.stdout
    return folder / "out"


def test_the_demo_runs_all_stages(output: Path) -> None:
    report = (output / "report.html").read_text()
    assert "skipped" not in report, "no engine was built"
    assert {path.name for path in output.iterdir()} >= {"digits.e3d", "film.e3d", "film.gif", "pedestrians.mp4"}


def test_the_bundles_of_the_demo_are_verified_and_streamed(demo_python: Path, output: Path) -> None:
    assert run(demo_python, "e3d", "verify", "film.e3d", cwd=output).returncode == 0
    done = run(
        demo_python, "e3d", "stream", "film.e3d", "pedestrians.mp4", "--horizon", "1", "--jsonl", "-", cwd=output
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 150


def test_the_full_size_model_is_said_to_be_in_the_repository(demo_python: Path, tmp_path: Path) -> None:
    done = run(demo_python, "e3d", "demo", "--full", cwd=tmp_path)
    assert done.returncode == 5
    assert "run e3d from a checkout of the repository" in done.stderr
    assert list(tmp_path.iterdir()) == []
