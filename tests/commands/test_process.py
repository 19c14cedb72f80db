"""Commands inside a program: they restore the state of the process, and signals end them in an orderly way."""

import errno
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import pytest

from e3d_deploy import files, tensorrt_library
from e3d_deploy.cli import main
from e3d_deploy.commands import _process
from e3d_deploy.commands._process import Stop, Terminated, as_guest, exit_code, stoppable, terminable
from e3d_deploy.commands._streams import lasting
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.files import new_file, new_folder, swap, write_file
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.worker import SourceWorker
from tests.settings import changed, settings
from tests.tools import Broken, e3d

SWALLOWING = """
import signal
try:
    signal.raise_signal(signal.SIGTERM)
    whole = True
except KeyboardInterrupt:  # like native code of torch and ml_dtypes
    whole = False
"""
"""Source of a module that receives a signal during its import."""


def run(*arguments: object) -> int | None:
    """Run a command as a host program does; return its exit code."""
    code: int | None = main([str(argument) for argument in arguments], standalone_mode=False)
    return code


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return the list of messages that a log handler of the program receives."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler()
    logging.root.addHandler(handler)
    yield messages
    logging.root.removeHandler(handler)


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "inspect": lambda folder, _: ["inspect", folder / "tiny.e3d"],
    "debug": lambda folder, _: ["--debug", "inspect", folder / "tiny.e3d"],
    "doctor": lambda *_: ["doctor"],
    "predict": lambda folder, out: ["predict", folder / "tiny.e3d", folder / "clip.npy", "-o", out / "a.gif"],
    "predict by PyTorch": lambda folder, out: [
        *("predict", folder / "tiny.e3d", folder / "clip.npy", "-o", out / "a.npz"),
        *("--backend", "torch", "--threads", 1),
    ],
    "verify": lambda folder, out: [  # a copy, because the report is recorded in the bundle
        *("verify", shutil.copytree(folder / "tiny.e3d", out / "copy.e3d"), "--threads", 1)
    ],
    "export": lambda folder, out: [
        *("export", folder / "tiny.safetensors", "-o", out / "b.e3d", "--context", 4, "--horizon", 3),
        *("--reference", folder / "clip.npy"),
    ],
    "failing": lambda folder, _: ["inspect", folder / "nothing.e3d"],
    "misused": lambda folder, _: ["predict", folder / "tiny.e3d"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "export" else []) for name in COMMANDS]
)
def test_a_command_leaves_the_process_as_it_was(
    name: str, exported: Path, tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(logging.getLogger("e3d_deploy"), "level", logging.INFO)
    torch.set_num_threads(2)
    try:
        before = settings()
        try:
            code = run(*COMMANDS[name](exported, tmp_path))
        except click.UsageError:
            code = 2
        assert changed(before, settings()) == {}
    finally:
        torch.set_num_threads(1)
    assert code == {"failing": 2, "misused": 2}.get(name)
    logging.getLogger("application").warning("saved")
    assert "saved" in log


def test_messages_are_shown_once_and_reach_the_program_too(log: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ours = logging.getLogger("e3d_deploy.runtime")
    with as_guest(debug=False), as_guest(debug=True):
        ours.warning("careful")
        ours.debug("details")
    with as_guest(debug=False):
        ours.debug("more details")
    ours.warning("after the command")
    assert capsys.readouterr().err.splitlines() == ["careful", "details"]
    assert log == ["careful", "details", "after the command"]


def test_commands_in_two_threads_leave_the_log_as_it_was() -> None:
    before, inside = settings(), threading.Barrier(3)

    def command(debug: bool) -> None:
        with as_guest(debug=debug):
            inside.wait(60)
            inside.wait(60)

    threads = [threading.Thread(target=command, args=(debug,)) for debug in (False, True)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    assert len(changed(before, settings())) == 1
    inside.wait(60)
    for thread in threads:
        thread.join()
    assert changed(before, settings()) == {}


def test_a_command_in_a_thread_leaves_signals_alone(exported: Path, tmp_path: Path) -> None:
    codes: list[int | None] = []
    arguments = ("predict", exported / "tiny.e3d", exported / "clip.npy", "-o", tmp_path / "a.npz")
    thread = threading.Thread(target=lambda: codes.append(run(*arguments)))
    thread.start()
    thread.join()
    assert codes == [None]


def test_handlers_of_the_program_are_kept() -> None:
    def own(*_: Any) -> None:
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with terminable(), stoppable():
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_sighup_ends_a_command_unless_it_is_ignored() -> None:
    with pytest.raises(Terminated) as end, terminable():
        signal.raise_signal(signal.SIGHUP)
    assert exit_code(end.value) == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # like `nohup`
    try:
        with terminable(), stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("handling", [terminable, stoppable])
def test_a_signal_within_an_import_waits_for_its_end(
    handling: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("swallowing")
        time.sleep(10)

    with pytest.raises(Terminated), handling():
        work()
    assert sys.modules.pop("swallowing").whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["mkdtemp", "rmtree"])
def test_a_signal_during_creation_or_removal_of_a_temporary_folder_leaves_none(
    step: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = {"mkdtemp": tempfile, "rmtree": shutil}[step]
    real = getattr(module, step)

    def signalled(*arguments: Any, **options: Any) -> Any:
        if step == "rmtree":
            signal.raise_signal(number)
        made = real(*arguments, **options)
        if step == "mkdtemp":
            signal.raise_signal(number)
        return made

    def work() -> None:
        with new_folder(tmp_path / "out"):
            pass
        time.sleep(10)

    monkeypatch.setattr(module, step, signalled)
    with pytest.raises(KeyboardInterrupt), terminable():
        work()
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("make", [new_file, new_folder])
def test_a_signal_between_entering_a_block_and_its_body_leaves_nothing(
    make: Callable[[Path], AbstractContextManager[Path]], number: signal.Signals, tmp_path: Path
) -> None:
    def signal_once(frame: FrameType, event: str, function: object) -> None:
        if event == "c_return" and function is next and list(tmp_path.iterdir()):
            sys.setprofile(None)
            handle: Any = signal.getsignal(number)
            handle(number, frame)  # as Python does if the signal arrives there

    def work() -> None:
        sys.setprofile(signal_once)
        with make(tmp_path / "out"):
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt) as kept, terminable():
        work()
    assert list(tmp_path.iterdir()) == []
    del kept  # until here the frame keeps unclosed objects alive, as at the end of a process


def test_a_signal_while_python_looks_for_a_temporary_folder_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_once(frame: FrameType, event: str, function: object) -> None:
        if event == "c_return" and function is os.open:
            sys.setprofile(None)
            handle: Any = signal.getsignal(signal.SIGTERM)
            handle(signal.SIGTERM, frame)  # as Python does if the signal arrives there

    def work() -> None:
        sys.setprofile(signal_once)
        assert tempfile.gettempdir() == str(tmp_path)
        time.sleep(10)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(Terminated), terminable():
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_just_before_the_end_ends_the_command(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def signalled(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(number)
        real(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", signalled)
    with pytest.raises(KeyboardInterrupt), terminable():
        write_file(tmp_path / "out", b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_signal_while_folders_are_exchanged_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new.partial", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    real = Path.replace

    def signalled(path: Path, target: Path) -> Path:
        moved = real(path, target)
        if path == old:
            signal.raise_signal(signal.SIGTERM)
        return moved

    def work() -> None:
        swap(new, old)
        time.sleep(10)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # like a system or disk that cannot exchange names
    monkeypatch.setattr(Path, "replace", signalled)
    with pytest.raises(Terminated), terminable():
        work()
    assert [(folder / "name").read_text() for folder in (new, old)] == ["old", "new.partial"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_an_object_is_freed_ends_the_command(number: signal.Signals) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def work() -> None:
        Freed()
        time.sleep(10)

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt) as end, terminable():
        work()
    assert exit_code(end.value) == 128 + number
    assert sys.unraisablehook is before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_command_survives_the_loss_of_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO))
    with lasting(), stoppable() as stop:
        for _ in stop.each(range(3)):
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(click.exceptions.Exit) as end:
            stop.finish()
    assert end.value.exit_code == 129


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_ends_a_loop_after_the_current_item(number: signal.Signals) -> None:
    with stoppable() as stop:
        seen = []
        for item in stop.each(range(100)):
            if item == 3:
                signal.raise_signal(number)
            seen.append(item)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(click.exceptions.Exit) as end:
        stop.finish()
    assert end.value.exit_code == 128 + number


def test_a_signal_ends_the_wait_for_the_next_item() -> None:
    def source() -> Iterator[int]:
        yield 0
        signal.raise_signal(signal.SIGINT)
        yield 1

    with stoppable() as stop:
        assert list(stop.each(source())) == [0]
    assert stop.number == signal.SIGINT


def test_a_signal_that_is_sent_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "SAME_S", 600.0)
    with stoppable() as stop:
        for _ in stop.each(range(3)):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_a_signal_before_the_first_item_and_a_second_one_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "SAME_S", 0.0)
    with stoppable(), pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    with stoppable() as stop:
        assert next(stop.each(range(3))) == 0
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_while_tensorrt_logs_is_not_lost(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library.log, "info", lambda _: signal.raise_signal(signal.SIGINT))
    logger = tensorrt_library.make_logger(rtx)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)

    def command() -> None:
        assert not rtx.OnnxParser(network, logger).parse(b"no graph")
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt), terminable():
        command()


def test_an_interrupt_that_is_not_ours_is_not_swallowed() -> None:
    def source() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Stop().each(source()))


@pytest.mark.parametrize("output", ["a.mp4", "a.gif", "a.npz", "pictures", None])
def test_an_interrupted_stream_keeps_its_results(
    output: str | None, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, seen, stopped = Follower.follow, [], threading.Event()
    stop = SourceWorker.stop

    def interrupted(self: Follower, picture: Any, **options: Any) -> Any:
        seen.append(picture)
        if len(seen) == 6:
            signal.raise_signal(signal.SIGINT)
            assert stopped.wait(60)
        return follow(self, picture, **options)

    def stopping(self: SourceWorker) -> None:
        stop(self)
        stopped.set()

    monkeypatch.setattr(Follower, "follow", interrupted)
    monkeypatch.setattr(SourceWorker, "stop", stopping)
    clip = Path(__file__).parents[2] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"
    written = [] if output is None else ["-o", tmp_path / output]
    taken = ["--backend", "onnxruntime", "--horizon", 2]
    result = e3d("stream", exported / "tiny.e3d", clip, *taken, *written, code=130)
    assert "6 frames, " in result.stdout
    assert result.stderr.splitlines()[-1] == "interrupted"
    if output == "a.npz":
        assert np.load(tmp_path / output)["frames"].shape == (1, 6, 16, 48, 1)
    elif output == "a.gif":
        from PIL import Image

        with Image.open(tmp_path / output) as image:
            image.seek(1)
    elif output is not None:
        assert read_clips(tmp_path / output, Form(image_size=(16, 48), channels=1)).frames.shape[1] == 6
    assert [path.name for path in tmp_path.iterdir()] == ([] if output is None else [output])


def test_an_interrupted_prediction_keeps_the_finished_clips(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e3d_deploy.measure.forecasts import forecast_clip

    made = []

    def interrupted(predictor: Any, pictures: Any, horizon: int, **options: Any) -> Any:
        made.append(horizon)
        if len(made) == 2:
            signal.raise_signal(signal.SIGTERM)
        return forecast_clip(predictor, pictures, horizon, **options)

    monkeypatch.setattr("e3d_deploy.workflows.predict.forecast_clip", interrupted)
    np.save(tmp_path / "clips.npy", np.zeros((5, 4, 16, 24, 1), np.uint8))
    e3d("predict", exported / "tiny.e3d", tmp_path / "clips.npy", "-o", tmp_path / "a.npz", code=143)
    assert np.load(tmp_path / "a.npz")["frames"].shape == (2, 3, 16, 24, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals")
def test_a_terminated_command_leaves_nothing_half_written(exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "e3d_deploy", "evaluate", str(exported / "tiny.e3d"), "-o", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--most", "100000", "--data", "moving-mnist"], stderr=subprocess.PIPE)
    while not any(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert not any(tmp_path.iterdir())
