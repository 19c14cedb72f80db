"""The built package, and environments that contain only the wheel and some extras.

All are made once per test run and shared by the workers of pytest-xdist.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from e3d_deploy.files import locked

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
EDGE = "cpu,video,plot"
"""Extras of a device that runs bundles."""
OFFLINE = ("Failed to establish a new connection", "Temporary failure in name resolution", "Name or service not known")
"""Messages of pip on a machine without a network."""
NOT_BUILT = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "demo-output")
"""Files of a checkout that are not copied before the build."""


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source distribution, built with the setuptools of this environment."""
    return _build(tmp_path_factory)


@pytest.fixture(scope="session")
def edge_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has the wheel with the extras of EDGE, and no PyTorch."""
    return installed(tmp_path_factory, EDGE)


def installed(factory: pytest.TempPathFactory, extras: str) -> Path:
    """Return the Python of an environment that has the wheel with these extras."""
    (wheel,) = _build(factory).glob("*.whl")

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        # Not compiled, because the tests import a small part of the modules.
        command = [*pip, "--no-compile", "-c", str(CONSTRAINTS), f"{wheel}[{extras}]"]
        done = subprocess.run(command, env=apart(), capture_output=True, text=True, check=False)
        if any(message in done.stderr for message in OFFLINE):
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr

    return _once(factory, f"environment-{extras.replace(',', '-')}", make) / "bin" / "python"


def run(python: Path, *arguments: str | Path, cwd: Path, seconds: float = 300) -> "subprocess.CompletedProcess[str]":
    """Run Python, or with a first argument `e3d` that command, where the checkout cannot be imported."""
    program = python.with_name("e3d") if arguments[0] == "e3d" else python
    command = [program, *(arguments[1:] if arguments[0] == "e3d" else arguments)]
    return subprocess.run(command, cwd=cwd, env=apart(), capture_output=True, text=True, check=False, timeout=seconds)


def apart() -> Mapping[str, str]:
    """Return the environment variables without those that make the checkout importable."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _build(factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        # setuptools writes into the folder that it builds, and reads what an earlier build left there.
        source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_BUILT), dirs_exist_ok=True)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
        done = subprocess.run(command, env=apart(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return _once(factory, "archives", make)


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled; only the first worker of a test run calls it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with locked(folder):
        if not (folder / "complete").exists():
            make(folder)
            (folder / "complete").touch()
    return folder
