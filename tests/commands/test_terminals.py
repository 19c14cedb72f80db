"""Commands print in every locale and complete their work if printing fails."""

import errno
import os
import pty
import subprocess
import sys
from contextlib import ExitStack
from io import BytesIO, TextIOWrapper
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from e3d_deploy.cli import Commands, main
from e3d_deploy.commands import _output
from e3d_deploy.commands._streams import lasting
from tests.tools import Broken, Terminal

SAID = "1 × 3 frames – max |Δ| ‖Δ‖ · • ≤ … 日"


def terminal(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Terminal:
    """Make stderr a terminal, with only these environment variables for colours."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def speaking(text: str) -> Commands:
    """Return a group with the command `say`, which prints a text on stdout and stderr."""

    @click.group(cls=Commands)
    @click.option("--debug", is_flag=True)
    def group(debug: bool) -> None:
        pass

    @group.command()
    def say() -> None:
        click.echo(text)
        _output.table([text], [[text]])
        click.echo(text, err=True)

    assert isinstance(group, Commands)
    return group


def say(text: str, encoding: str) -> Result:
    result = CliRunner(charset=encoding).invoke(speaking(text), ["say"])
    assert result.exit_code == 0, result.exception
    return result


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "shift-jis"])
def test_characters_that_an_encoding_lacks_are_replaced(encoding: str) -> None:
    result = say(SAID, encoding)
    for content in (result.stdout_bytes, result.stderr_bytes):
        first = content.decode(encoding).splitlines()[0]
        assert "3 frames" in first
        assert len(first) >= len(SAID)
    if encoding == "ascii":
        assert result.stdout_bytes.decode("ascii").splitlines()[0] == r"1 x 3 frames - max |d| |d| - - <= ... \u65e5"


def test_characters_of_the_encoding_are_printed() -> None:
    assert say(SAID, "utf-8").stdout.splitlines()[0] == SAID
    assert b"\xd7" in say(SAID, "latin-1").stdout_bytes


def test_file_names_keep_their_bytes_only_on_stdout() -> None:
    result = say("a\udcffb", "utf-8")
    assert result.stdout_bytes.splitlines()[0] == b"a\xffb"
    assert result.stderr_bytes.splitlines()[-1] == rb"a\udcffb"


def test_streams_of_the_program_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [TextIOWrapper(BytesIO(), encoding="ascii", errors=errors) for errors in ("strict", "ignore")]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with lasting():
        assert sys.stdout is not streams[0]
        assert streams[1].errors == "ignore"  # chosen by the user
    assert [sys.stdout, sys.stderr] == streams
    assert streams[0].errors == "strict"


def test_concurrent_commands_restore_the_streams_when_the_last_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [TextIOWrapper(BytesIO(), encoding="ascii", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    first, second = ExitStack(), ExitStack()
    first.enter_context(lasting())
    out = second.enter_context(lasting())
    first.close()
    assert sys.stdout is out
    click.echo(SAID)
    click.echo(SAID, err=True)
    second.close()
    assert [sys.stdout, sys.stderr] == streams
    assert [stream.errors for stream in streams] == ["strict", "strict"]
    with lasting():
        assert sys.stdout is not out
    assert [sys.stdout, sys.stderr] == streams


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 7), (errno.EIO, 1)])
def test_work_continues_when_stdout_breaks(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    with pytest.raises(SystemExit) as caught:
        speaking("done")(["say"])
    assert caught.value.code == code
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "done"
    assert len(said) == 1 + bool(code)
    assert all(line.startswith(f"Error: stdout: {os.strerror(number)}; ") for line in said[1:])


def test_work_continues_when_stderr_breaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
    with pytest.raises(SystemExit) as caught:
        speaking("done")(["say"])
    assert caught.value.code == 0
    assert "done" in capsys.readouterr().out


def test_an_error_keeps_its_code_when_nothing_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
    with pytest.raises(SystemExit) as caught:
        main(["unpack", "absent.zip", "-o", "bundle.e3d"])
    assert caught.value.code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("closing", "code"), [(">&- 2>&- <&-", 0), (">/dev/full", 7)])
def test_a_file_is_complete_when_outputs_are_closed_or_full(
    closing: str, code: int, bundle_path: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "bundle.zip"
    command = [sys.executable, "-m", "e3d_deploy", "pack", str(bundle_path), "-o", str(archive)]
    done = subprocess.run(["bash", "-c", f'"$@" {closing}', "bash", *command], capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    assert b"Exception ignored" not in done.stderr
    assert archive.read_bytes()[:2] == b"PK"


def test_progress_is_an_erased_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, {})
    with _output.working("measuring [red]") as progress:
        progress("clip 1")
    assert "measuring [red]" in shown.getvalue()
    assert "\x1b[" in shown.getvalue()


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_progress_is_plain_on_a_dumb_terminal(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, variables)
    with _output.working("measuring") as progress:
        for number in range(100):
            progress(f"clip {number}")
    _output.warn("unproved")
    assert shown.getvalue() == "measuring\nWARN unproved\n"


def test_progress_of_long_work_is_a_line_per_interval_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(_output.time, "monotonic", lambda: next(seconds))
    with _output.working("measuring") as progress:
        for number in range(6):
            progress(f"clip {number}")
    assert capsys.readouterr().err.splitlines() == ["measuring", "measuring: clip 2", "measuring: clip 5"]


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_colours_follow_the_variables(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal(monkeypatch, variables)
    _output.warn("unproved")
    assert ("\x1b[" in shown.getvalue()) is coloured


def test_nothing_but_text_goes_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    result = CliRunner().invoke(main, ["doctor"], color=True)
    assert "\x1b" not in result.stdout


def test_a_real_terminal_gets_plain_text_without_colours() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "60"}
    command = [sys.executable, "-c", "from e3d_deploy.commands._output import table; table(['a'], [['b']])"]
    subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == b"a\r\nb\r\n"
    os.close(ours)
