"""Outputs to pipes whose reader stalls, is slow or has not opened the pipe."""

import os
import threading
from pathlib import Path

import pytest

from e3d_deploy.live.sinks import Output

LARGE = bytes(range(256)) * 4096
"""More bytes than the buffer of a pipe holds."""


def abandoned(output: Output) -> list[BaseException]:
    """Write more bytes than a pipe holds in a thread, abandon the output, and return the errors of the write."""
    errors: list[BaseException] = []

    def write() -> None:
        try:
            output.write(LARGE)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    output.abandon()
    thread.join(60)
    assert not thread.is_alive()
    output.close()
    return errors


def test_a_write_to_a_stalled_reader_can_be_abandoned() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0) as stream:
        (error,) = abandoned(Output(stream))
    assert isinstance(error, BrokenPipeError)


def test_a_write_to_a_named_pipe_without_a_reader_can_be_abandoned(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (error,) = abandoned(Output(tmp_path / "pipe"))
    assert isinstance(error, BrokenPipeError)


def test_a_slow_reader_gets_every_byte(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    output = Output(tmp_path / "pipe")
    thread.start()
    output.write(LARGE)
    output.close()
    thread.join(60)
    assert got == [LARGE]


def test_a_pipe_without_a_reader_is_broken() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):
        Output(stream).write(b"a")
