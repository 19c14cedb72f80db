"""Container files: style, and agreement with the package."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from e3d_deploy.cli import main
from tests.packaging.environments import ROOT

FOLDER = ROOT / "deploy" / "container"
FILES = [FOLDER / "Dockerfile", FOLDER / "Dockerfile.gpu"]


def words(path: Path, instruction: str) -> list[list[str]]:
    """Return the arguments of each use of an instruction; a list in JSON as its items."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{instruction} ")]
    return [json.loads(line) if line.startswith("[") else shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_accepts_the_file(path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"  # of the extra `dev`; the environment need not be in PATH
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_container_starts_a_command_that_exists(path: Path) -> None:
    (entry,), (arguments,) = words(path, "ENTRYPOINT"), words(path, "CMD")
    assert entry == ["e3d"]
    assert main.commands[arguments[0]].make_context(arguments[0], arguments[1:]).params


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_container_has_an_unprivileged_user(path: Path) -> None:
    user, group = words(path, "USER")[-1][0].split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_all_that_is_copied_exists_and_reaches_the_build(path: Path) -> None:
    copied = [one for line in words(path, "COPY") for one in line[:-1] if not line[0].startswith("--from")]
    passed = path.with_name(f"{path.name}.dockerignore").read_text()
    assert copied
    assert [name for name in copied if not (ROOT / name).exists() or f"\n!{name}\n" not in passed] == []


def test_the_gpu_is_given_the_versions_of_its_own_constraints() -> None:
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "constraints-gpu.txt").read_text(), re.MULTILINE)
    assert pinned == ["onnxruntime-gpu", "tensorrt"]
    assert "-c requirements/constraints-gpu.txt" in (FOLDER / "Dockerfile.gpu").read_text()
