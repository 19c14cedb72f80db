"""The script deploy/triton/serve: its refusals, its installation, and the end of the server."""

import ctypes
import importlib.util
import platform
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tritonclient import grpc

from tests.triton.server import CHECKOUT, END_S, SERVE, serving, why_not

TOY = """\
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        return [triton.InferenceResponse([]) for _ in requests]
"""
"""Model that needs no package."""
CONFIG = """\
backend: "python"
max_batch_size: 1
input [{ name: "x" data_type: TYPE_UINT8 dims: [1] }]
output [{ name: "y" data_type: TYPE_UINT8 dims: [1] }]
sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { max_candidate_sequences: 4 } }
instance_group [{ kind: KIND_CPU }]
"""


@pytest.fixture
def script() -> ModuleType:
    """Return the script as a module."""
    loader = SourceFileLoader("serve_script", str(SERVE))
    spec = importlib.util.spec_from_loader("serve_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a model repository with one model that needs no package."""
    folder = tmp_path / "models" / "toy"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(TOY)
    (folder / "config.pbtxt").write_text(CONFIG)
    return tmp_path / "models"


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SERVE, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_a_missing_repository_is_a_usage_error(tmp_path: Path) -> None:
    found = run()
    assert found.returncode == 2
    assert "REPOSITORY is missing; write one with: e3d pack BUNDLE --triton REPOSITORY" in found.stderr
    for path in (tmp_path / "nothing", tmp_path):
        found = run(path)
        assert found.returncode == 2
        assert f"{path}: no model repository, which has a MODEL/config.pbtxt" in found.stderr


@pytest.mark.parametrize("folder", ["a b", "a'b", "$(touch made)", "é"])
def test_a_path_that_a_shell_would_change_is_a_usage_error(folder: str, repository: Path, tmp_path: Path) -> None:
    found = run(repository.rename(tmp_path / folder))
    assert found.returncode == 2
    assert "the server gives this path to a shell; use only a-z, A-Z, 0-9 and _ . / + -" in found.stderr


@pytest.mark.parametrize("port", [0, 8001, 99999])
def test_an_invalid_or_repeated_port_is_a_usage_error(port: int, repository: Path) -> None:
    found = run(repository, "--http-port", str(port))
    assert found.returncode == 2
    assert f"ports: got {port}, 8001, 8002, expected different numbers from 1 to 65535" in found.stderr


def test_a_check_before_the_installation_names_the_command(tmp_path: Path) -> None:
    found = run("--check", "--environment", tmp_path / "none")
    assert (found.returncode, found.stderr) == (4, f"serve: not installed; run: {SERVE} --install\n")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("patches", "expected"),
    [
        (
            {"platform.system": "Darwin"},
            "got Darwin on x86_64, but the server that pip installs is for Linux on x86-64",
        ),
        ({"platform.machine": "aarch64"}, "got Linux on aarch64"),
        ({"sys.version_info": (3, 14, 0)}, "but the server supports 3.11, 3.12; run: python3.12"),
        ({"find_spec": None}, "run: apt-get install -y python3-venv"),
        ({"CDLL": OSError()}, "was not found, which the server needs; run: apt-get install -y libpython3."),
    ],
)
def test_a_machine_without_what_the_server_needs_is_refused(
    script: ModuleType,
    patches: dict[str, object],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_library(_: str) -> None:
        raise OSError

    system, machine = patches.get("platform.system", "Linux"), patches.get("platform.machine", "x86_64")
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    version = patches.get("sys.version_info", (3, 11, 0))
    monkeypatch.setattr(
        script, "sys", SimpleNamespace(version_info=version, argv=["serve"], exit=sys.exit, stderr=sys.stderr)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: patches.get("find_spec", "found"))
    monkeypatch.setattr(ctypes, "CDLL", no_library if "CDLL" in patches else lambda _: None)
    with pytest.raises(SystemExit) as error:
        script.check_machine()
    assert error.value.code == 4
    assert expected in capsys.readouterr().err


def test_an_installation_that_failed_is_not_used(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(script.venv, "create", lambda folder, **_: folder.mkdir(parents=True))
    monkeypatch.setattr(script.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="the installation failed"):
        script.install(tmp_path / "server")
    assert not script.is_ready(tmp_path / "server")


def test_new_requirements_make_an_installation_old(script: ModuleType, tmp_path: Path) -> None:
    pretend_python(tmp_path)
    (tmp_path / script.READY).write_text("numpy==1.26.3\n")
    assert not script.is_ready(tmp_path)
    (tmp_path / script.READY).write_text((CHECKOUT / "deploy" / "triton" / "requirements.txt").read_text())
    assert script.is_ready(tmp_path)


def test_an_installation_whose_python_was_removed_is_not_used(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / script.READY).write_text((CHECKOUT / "deploy" / "triton" / "requirements.txt").read_text())
    pretend_python(tmp_path)
    assert script.is_ready(tmp_path)
    (tmp_path / "venv" / "bin" / "python").unlink()
    assert not script.is_ready(tmp_path)


def pretend_python(environment: Path) -> None:
    (environment / "venv" / "bin").mkdir(parents=True)
    (environment / "venv" / "bin" / "python").symlink_to(sys.executable)


@pytest.mark.skipif(bool(reason := why_not()), reason=reason)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly(repository: Path, number: signal.Signals) -> None:
    with serving(repository) as addresses:
        addresses.process.send_signal(number)
        assert addresses.process.wait(END_S) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://{addresses.http}/v2/health/live", timeout=5)


@pytest.mark.skipif(bool(reason := why_not()), reason=reason)
def test_open_sequences_delay_the_end_of_the_server_only_for_a_short_time(repository: Path) -> None:
    x = grpc.InferInput("x", [1, 1], "UINT8")
    x.set_data_from_numpy(np.zeros((1, 1), np.uint8))
    with serving(repository) as addresses:
        with grpc.InferenceServerClient(addresses.grpc) as client:
            client.infer("toy", [x], sequence_id=1, sequence_start=True)
        addresses.process.terminate()
        addresses.process.wait(END_S)
        assert "have in-flight inferences" in addresses.log.read_text()
