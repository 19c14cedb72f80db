"""Signals before and after a command, to which Python would answer with a traceback."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals")

ROOT = Path(__file__).parents[1]
NUMBERS = [
    number
    for number in (getattr(signal, name, signal.SIGTERM) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` does; child processes inherit this
]
AT_EXIT = """
import atexit, os, signal, sys
number = int(sys.argv.pop(1))
atexit.register(os.kill, os.getpid(), number)
{before}
from e3d_deploy.__main__ import main
main()
"""
"""Code of a program that gets a signal after its command has ended."""


def run(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("module", ["click", "rich", "torch"])
def test_a_signal_while_modules_are_imported_ends_the_program_without_a_traceback(
    module: str, number: signal.Signals, exported: Path, tmp_path: Path
) -> None:
    """The first module of the list is imported before any command, the remaining modules by a command."""
    stub = tmp_path / f"{module}.py"
    stub.write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    commands = {
        "click": ["--help"],
        "rich": ["inspect", exported / "tiny.e3d"],
        "torch": ["export", stub, "-o", tmp_path / "out"],
    }
    done = run(tmp_path, "-m", "e3d_deploy", *commands[module])
    assert (done.returncode, done.stderr) == (128 + number, "interrupted\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_after_a_command_ends_the_program_without_a_traceback(number: signal.Signals, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", AT_EXIT.format(before=""), int(number), "--version")
    assert done.stdout.startswith("e3d, version ")
    assert (done.returncode, done.stderr) == (128 + number, "interrupted\n")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    number = int(NUMBERS[-1])
    ignore = f"signal.signal({number}, signal.SIG_IGN)"  # like `nohup`
    done = run(tmp_path, "-c", AT_EXIT.format(before=ignore), number, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_console_script_handles_signals_before_it_imports_commands(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"e3d": "e3d_deploy.__main__:main"}
    done = run(tmp_path, "-X", "importtime", "-c", "import e3d_deploy.__main__")
    ours = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "e3d_deploy" in line]
    assert [name for name in ours if not name.startswith("__editable__")] == [
        *("e3d_deploy", "e3d_deploy.interrupts", "e3d_deploy.__main__")
    ]
