"""Streams during interpreter shutdown and in forked processes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime import Predictor
from tests.fake_backend import FakeBackend, pushed, until

BEGIN = """
import atexit, sys, threading, time
later = []
atexit.register(lambda: [call() for call in later])  # before the library is imported, so it runs after its handlers
import numpy as np
from e3d_deploy.errors import StreamError
from tests.fake_backend import FakeBackend, alone, picture, predictor_of, pushed
backend = FakeBackend()
streams = predictor_of(backend).streams(queue_length=1000)
stream = pushed(streams.open(), 10, 20)
stream.wait()
"""

SAVED = """
def save():
    stream.snapshot().save(sys.argv[1])
    pushed(stream, 30)
    assert stream.pushed == 3, "a push waits until it is seen"
    np.testing.assert_array_equal(stream.forecast(2), alone([10, 20, 30], 2))
    stream.reset()
    fork = streams.open()
    fork.close()
    try:
        stream.predict_async(2)
    except StreamError as error:
        print(error)
    streams.close()
    print("saved")

later.append(save)
"""

IN_A_STEP = """
from e3d_deploy.runtime.process import is_ending
step = backend.step
def slow(*args):
    began.set()
    while not is_ending():
        time.sleep(0.001)
    answer = step(*args)
    print("stepped", flush=True)
    return answer
began, backend.step = threading.Event(), slow
pushed(stream, 30, 40, 50)
began.wait()
later.append(lambda: print("pushed", stream.pushed, stream.stats()["dropped"]["closed"]))
"""

CAMERA = """
refused = []
def camera():
    while True:
        try:
            pushed(stream, 30)
            stream.predict(2)
        except StreamError as error:
            if "Python is shutting down" not in str(error):
                raise
            refused.append(error)
            time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=camera, daemon=True).start()
time.sleep(0.05)
def ask():
    pushed(stream, 1)
    stream.predict(3)
    while len(refused) < 4:
        time.sleep(0.01)
    steps = len(backend.calls)
    time.sleep(0.1)
    print("idle", len(backend.calls) == steps)
later.append(ask)
"""


def at_the_end(code: str, *arguments: Path) -> str:
    """Run a program to its end and return what it printed."""
    command = [sys.executable, "-X", "faulthandler", "-c", BEGIN + code + "\nsys.exit(3)", *map(str, arguments)]
    root = Path(__file__).parents[3]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
    return ended.stdout


def test_an_exit_handler_that_was_registered_first_may_use_streams(tmp_path: Path) -> None:
    said = at_the_end(SAVED, tmp_path / "camera.npz").splitlines()
    assert (tmp_path / "camera.npz").exists()
    assert said == [
        "predict_async: Python is shutting down, so no request may be left unfinished; call predict instead",
        "saved",
    ]


def test_python_ends_after_the_step_that_is_on_its_way() -> None:
    assert at_the_end(IN_A_STEP).splitlines() == ["stepped", "pushed 3 2"]


def test_daemon_threads_are_refused_at_the_end_and_exit_handlers_are_not() -> None:
    assert at_the_end(CAMERA).splitlines() == ["idle True"]


def test_what_passed_the_check_just_before_the_end_of_python_is_not_stepped(
    backend: FakeBackend, predictor: Predictor
) -> None:
    with predictor.streams() as streams, streams.open() as stream:
        pushed(stream, 1).wait()
        streams.scheduler.queues.drain()
        pushed(stream, 2)
        until(streams.scheduler.queues.mailbox.empty)
        streams.close()
        assert (stream.pushed, len(backend.calls)) == (1, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_every_call_in_a_forked_process_is_told_at_once(backend: FakeBackend, predictor: Predictor) -> None:
    """The fork happens while one thread holds the callers' lock and the thread of the streams is inside a step."""
    with predictor.streams() as streams, streams.open() as stream:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with streams.scheduler.queues.lock:
                held.set()
                done.wait(60)

        backend.gate.clear()
        pushed(stream, 1)
        assert backend.entered.wait(60)
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(60)
        calls: list[Callable[[], object]] = [
            lambda: pushed(stream, 1),
            lambda: stream.predict(3),
            lambda: stream.predict_async(3),
            lambda: stream.forecast(3),
            stream.wait,
            stream.reset,
            stream.snapshot,
            stream.fork,
            streams.open,
        ]
        if (child := os.fork()) == 0:
            signal.alarm(10)
            told = 0
            for call in calls:
                try:
                    call()
                except StreamError as error:
                    told += "forked" in str(error)
            with streams, stream:
                stream.close()
                streams.close()
            os._exit(0 if told == len(calls) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
        backend.gate.set()
        holder.join()
        assert stream.predict(3).shape == (3, 4, 8, 1)
