"""Absence of network connections when a new Python process and its children import and run the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e3d_deploy.runtime.backends.specs import BACKENDS, installed

HOOK = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if not isinstance(arguments[-1], (str, bytes)) or event != "socket.connect":
            os.write(2, f"CONTACT {event} {arguments}\\n".encode())
sys.addaudithook(note)
"""
OPEN = """
import sys
from e3d_deploy.runtime import load
for name in sys.argv[2:]:
    load(sys.argv[1], name, threads=1).close()
"""


def contacts(code: str, *arguments: object, home: Path | None) -> list[str]:
    """Return the addresses that a Python running the code tried to reach.

    strace, if it is installed, also sees connections of native code.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "ORT_DISABLE_TELEMETRY")}
    if home is not None:
        environment["HOME"] = str(home)
    command = [sys.executable, "-c", HOOK + code, *map(str, arguments)]
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-qq", "-e", "trace=connect", *command]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^CONTACT .*|.*connect\(.*AF_INET6?.*", done.stderr, re.MULTILINE)


def test_connections_are_detected() -> None:
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), timeout=1)\nexcept OSError: pass"
    assert contacts(code, home=None)


@pytest.mark.parametrize("home", ["there", "missing", None])
def test_opening_backends_contacts_nobody(home: str | None, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    here = [name for name in installed() if BACKENDS[name].device == "cpu" and "compiled" not in name]
    assert "onnxruntime" in here
    names = here if home == "there" else [name for name in here if "torch" not in name]
    assert contacts(OPEN, exported / "tiny.e3d", *names, home=None if home is None else tmp_path / home) == []
    assert not any((tmp_path / "there").iterdir())
    assert not (tmp_path / "missing").exists()


@pytest.mark.slow
def test_commands_contact_nobody(exported: Path, tmp_path: Path) -> None:
    code = "from e3d_deploy.cli import main\nmain(sys.argv[1:])"
    for command in (
        ("doctor",),
        ("predict", exported / "tiny.e3d", exported / "clip.npy", "-o", tmp_path / "a.npz"),
        ("train", "--help"),
        (
            *("train", "-o", tmp_path / "run", "--data", exported / "clip.npy", "--image-size", "16x24", "--steps", 1),
            *("--hidden", 4, "--context", 1, "--horizon", 1, "--batch-size", 1, "--no-decay", "--workers", 0),
        ),
    ):
        assert contacts(code, *command, home=tmp_path) == []


def test_openvino_is_imported_without_telemetry() -> None:
    pytest.importorskip("openvino_telemetry", reason="OpenVINO is not installed with it")
    code = """
import sys
from e3d_deploy.openvino_library import openvino
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry
assert openvino_telemetry.Telemetry
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
