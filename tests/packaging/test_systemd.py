"""Unit files for systemd."""

import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from e3d_deploy.cli import main
from tests.packaging.environments import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
DEADLY = {2, 3, 4, 5}
"""Exit codes of errors that remain after a restart: usage, quality, missing library, damaged file."""
EXPOSURE = 2.0
"""Highest accepted exposure, from 0 to 10, by systemd-analyze; measured: 1.7."""


def unit(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def systemd_analyze(*arguments: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a copy of a unit whose program exists on this machine."""
    path: Path = request.param
    text = path.read_text().replace("/opt/e3d/bin/e3d ", f"{sys.executable} -m e3d_deploy ")
    copy = tmp_path / path.name
    copy.write_text(text)
    return copy


def test_there_is_a_unit_for_a_server_and_one_for_a_stream() -> None:
    assert [path.name for path in UNITS] == ["e3d-serve.service", "e3d-stream.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_command_of_a_unit_exists_with_these_options(path: Path) -> None:
    program, name, *arguments = shlex.split(unit(path)["Service"]["ExecStart"])
    assert program == "/opt/e3d/bin/e3d"
    assert main.commands[name].make_context(name, arguments).params


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_an_error_that_a_restart_would_repeat_is_not_restarted(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["Restart"] == "on-failure"
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == DEADLY


def test_each_unit_writes_to_the_cache_that_is_its_own() -> None:
    """`DynamicUser=` gives each unit another user, and systemd changes the owner of a shared folder at each start."""
    services = [unit(path)["Service"] for path in UNITS]
    folders = [service["CacheDirectory"] for service in services]
    assert len(set(folders)) == len(UNITS)
    for path, folder in zip(UNITS, folders, strict=True):
        assert f"Environment=XDG_CACHE_HOME=%C/{folder}\n" in path.read_text()


@pytest.mark.parametrize("installed", UNITS, indirect=True, ids=lambda path: path.name)
def test_systemd_accepts_a_unit(installed: Path) -> None:
    assert systemd_analyze("verify", "--man=no", "--recursive-errors=no", installed) == ""


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_hardened(path: Path) -> None:
    report = systemd_analyze("security", "--offline=yes", "--no-pager", path)
    (exposure,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d+)", report)
    assert float(exposure) <= EXPOSURE
