"""Streams on two real Triton servers, of which one is killed, stopped, ended or started again."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import runtime
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.fleet import Fleet, Stream
from e3d_deploy.fleet.hashing import ranking
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.shipped import extracted
from e3d_deploy.triton.config import Serving
from e3d_deploy.triton.repository import write_repository
from tests.triton.server import Addresses, kill, serving, wait_until_ready, why_not

CONTEXT, LENGTH, HORIZON = 4, 14, 3
"""Frames of context of the bundle, pictures of a clip, and pictures of a forecast."""
IDLE_S = 1.0
"""Idle time of the model `short` (s)."""
Pictures = NDArray[np.uint8]
Results = list[NDArray[np.float32]]

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)


@pytest.fixture(scope="module")
def repository(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the tiny bundle as `tiny`, and as `short` with a short idle time."""
    folder = tmp_path_factory.mktemp("models")
    for name, idle_s in (("tiny", 60.0), ("short", IDLE_S)):
        written = tmp_path_factory.mktemp("written") / "models"
        settings = Serving(backend="onnxruntime", threads=1, idle_s=idle_s)
        write_repository([Bundle.open(exported / "tiny.e3d")], written, name=name, serving=settings)
        shutil.move(written / name, folder)
    return folder


@pytest.fixture(scope="module")
def survivor(repository: Path) -> Iterator[Addresses]:
    with serving(repository) as addresses:
        yield addresses


@pytest.fixture
def other(repository: Path) -> Iterator[Addresses]:
    with serving(repository) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Iterator[Predictor]:
    """Return the local runtime, whose bits the servers have to reproduce."""
    with runtime.load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def clips() -> Pictures:
    """Return clips from the package's own video, [stream, T, H, W, C]."""
    with extracted(PEDESTRIANS) as path:
        (video,) = read_clips(path, Form(image_size=(16, 24), channels=1)).clips
    return np.stack([np.asarray(video[7 * number : 7 * number + LENGTH]) for number in range(6)])


def opened(fleet: Fleet, first: str, count: int) -> list[Stream]:
    """Open streams whose first host is `first`."""
    names = (name for name in map("camera-{}".format, range(1000)) if ranking(name, fleet.hosts)[0] == first)
    return [fleet.stream(name) for _, name in zip(range(count), names, strict=False)]


def expected(predictor: Predictor, pictures: Pictures) -> Results:
    """Return the predictions of a local stream that sees only these pictures."""
    stream, results = predictor.stream(), []
    for picture in pictures:
        stream.push(picture)
        results.append(stream.forecast(1)[0])
    return results


def push(streams: list[Stream], clips: Pictures, begin: int, end: int) -> list[Results]:
    """Push the pictures `begin` to `end` of all clips in turn, and return the predictions of each stream."""
    rounds = [[stream.push(clip[t]) for stream, clip in zip(streams, clips, strict=True)] for t in range(begin, end)]
    return [list(results) for results in zip(*rounds, strict=True)]


@contextmanager
def again(server: Addresses) -> Iterator[Addresses]:
    """Start a killed server again, on the same ports."""
    with server.log.open("ab") as output:
        process = subprocess.Popen(server.process.args, stdout=output, stderr=output, start_new_session=True)
    try:
        started = replace(server, process=process)
        wait_until_ready(started)
        yield started
    finally:
        kill(process)


def test_streams_of_a_killed_server_continue_on_the_other_and_return_when_that_is_killed(
    survivor: Addresses, other: Addresses, predictor: Predictor, clips: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.fleet.fleet.AVOID_S", 0.0)
    with Fleet([survivor.grpc, other.grpc], "tiny") as fleet:
        assert fleet.context == CONTEXT
        streams = [*opened(fleet, survivor.grpc, 3), *opened(fleet, other.grpc, 3)]
        results = push(streams, clips, 0, 7)
        kill(other.process)
        for found, more in zip(results, push(streams, clips, 7, 10), strict=True):
            found += more
        assert [stream.host for stream in streams] == [survivor.grpc] * 6
        assert [stream.restarts for stream in streams] == [0, 0, 0, 1, 1, 1]
        future = streams[3].push(clips[3][10], horizon=HORIZON)
        for found, clip in zip(results[:3], clips[:3], strict=True):
            np.testing.assert_array_equal(found, expected(predictor, clip[:10]))
        for found, clip in zip(results[3:], clips[3:], strict=True):
            np.testing.assert_array_equal(found[:7], expected(predictor, clip[:7]))
            np.testing.assert_array_equal(found[7:], expected(predictor, clip[8 - CONTEXT : 10])[CONTEXT - 1 :])
        local = predictor.stream()
        for picture in clips[3][8 - CONTEXT : 11]:
            local.push(picture)
        np.testing.assert_array_equal(future, local.predict(HORIZON))

        with again(other):
            push(streams[3:], clips[3:], 11, 12)
            assert {stream.host for stream in streams} == {survivor.grpc}  # no stream moves while its host answers
            [late] = opened_again(fleet, streams[3])
            np.testing.assert_array_equal(push([late], clips[:1], 0, 2)[0], expected(predictor, clips[0][:2]))
            assert late.host == other.grpc


def opened_again(fleet: Fleet, stream: Stream) -> list[Stream]:
    stream.close()
    return [fleet.stream(stream.name)]


def test_streams_leave_a_server_that_does_not_answer(
    survivor: Addresses, other: Addresses, predictor: Predictor, clips: Pictures
) -> None:
    with Fleet([survivor.grpc, other.grpc], "tiny", timeout_s=3) as fleet:
        streams = opened(fleet, other.grpc, 1)
        push(streams, clips[:1], 0, 6)
        os.killpg(other.process.pid, signal.SIGSTOP)
        [results] = push(streams, clips[:1], 6, 8)
        np.testing.assert_array_equal(results, expected(predictor, clips[0][7 - CONTEXT : 8])[CONTEXT - 1 :])
        assert (streams[0].host, streams[0].restarts) == (survivor.grpc, 1)


def test_streams_leave_a_server_whose_model_was_killed(
    survivor: Addresses, other: Addresses, predictor: Predictor, clips: Pictures
) -> None:
    """Triton does not start the process of the model again, and says that the model is ready."""
    with Fleet([survivor.grpc, other.grpc], "tiny") as fleet:
        streams = opened(fleet, other.grpc, 1)
        push(streams, clips[:1], 0, 6)
        for process in models_of(other):
            os.kill(process, signal.SIGKILL)
        [results] = push(streams, clips[:1], 6, 8)
        np.testing.assert_array_equal(results, expected(predictor, clips[0][7 - CONTEXT : 8])[CONTEXT - 1 :])
        assert (streams[0].host, streams[0].restarts) == (survivor.grpc, 1)


def models_of(server: Addresses) -> list[int]:
    """Return the ids of the processes of a server's models."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # The process has ended.
            fields = stat.read_text().rpartition(")")
            if "(triton_python_b" in fields[0] and int(fields[2].split()[2]) == server.process.pid:
                found.append(int(stat.parent.name))
    return found


def test_streams_leave_a_server_that_is_about_to_end_and_let_it_end(
    survivor: Addresses, other: Addresses, predictor: Predictor, clips: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.fleet.connection.READY_S", 0.0)
    with Fleet([survivor.grpc, other.grpc], "tiny", timeout_s=60) as fleet:
        streams = opened(fleet, other.grpc, 1)
        push(streams, clips[:1], 0, 6)
        other.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Waiting for in-flight requests" in other.log.read_text())
        [results] = push(streams, clips[:1], 6, 8)
        np.testing.assert_array_equal(results, expected(predictor, clips[0][7 - CONTEXT : 8])[CONTEXT - 1 :])
        assert (streams[0].host, streams[0].restarts) == (survivor.grpc, 1)
        wait_until(lambda: "Found 0 model versions that have in-flight inferences" in other.log.read_text())


def test_a_sequence_that_expired_on_the_server_restarts_from_its_context(
    survivor: Addresses, predictor: Predictor, clips: Pictures
) -> None:
    with Fleet([survivor.grpc], "short") as fleet:
        stream = fleet.stream("camera-7")
        push([stream], clips[:1], 0, 6)
        wait_until(lambda: states(survivor) == 1)
        wait_until(lambda: states(survivor) == 0)
        [results] = push([stream], clips[:1], 6, 8)
        np.testing.assert_array_equal(results, expected(predictor, clips[0][7 - CONTEXT : 8])[CONTEXT - 1 :])
        assert (stream.host, stream.restarts) == (survivor.grpc, 1)


def test_a_closed_stream_frees_its_state_on_the_server(survivor: Addresses, clips: Pictures) -> None:
    with Fleet([survivor.grpc], "tiny") as fleet:
        push([fleet.stream("camera-7")], clips[:1], 0, 2)
        wait_until(lambda: states(survivor) == 1)
    wait_until(lambda: states(survivor) == 0)


def states(server: Addresses) -> float:
    """Return the number of streams whose state a server holds."""
    return server.metric("e3d_streams")


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true, for at most 20 s."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
