"""Threads, Ctrl-C, forks and the end of the program."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from e3d_deploy.errors import StreamError
from e3d_deploy.fleet import Stream
from tests.fleet.conftest import Servers
from tests.fleet.fake_server import picture
from tests.fleet.test_stream import level


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run a function in a thread; the list receives its result or its error."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_threads_share_a_fleet_with_a_stream_each_also_while_a_host_is_lost(servers: Servers) -> None:
    half_way = threading.Barrier(9)

    with servers.fleet(timeout_s=30.0) as fleet:

        def watch(number: int) -> list[float]:
            with fleet.stream(f"camera-{number}") as stream:
                first = [level(stream, value) for value in (1, 2, 3)]
                half_way.wait(60)
                half_way.wait(60)
                return [*first, *(level(stream, value) for value in (4, 5)), stream.restarts]

        watching = [in_thread(lambda number=number: watch(number)) for number in range(8)]  # type: ignore[misc]
        half_way.wait(60)
        lost = servers.all[0]
        moved = len(lost.states)
        servers.stop[lost.address]()
        half_way.wait(60)
        for thread, _ in watching:
            thread.join(60)
    results = [result for _, [result] in watching]
    assert 0 < moved < 8
    assert results.count([1, 3, 6, 9, 14, 1]) == moved  # restarted from 2, 3, 4
    assert results.count([1, 3, 6, 10, 15, 0]) == 8 - moved


def test_a_stream_refuses_a_second_thread_during_a_call(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        server = servers.at(stream.host)
        server.hold()
        thread, found = in_thread(lambda: level(stream, 2))
        server.wait_for(2)
        with pytest.raises(StreamError, match="stream 'camera-7': another thread is using it; open one stream per"):
            level(stream, 3)
        server.release()
        thread.join(60)
        assert found == [3]
        assert level(stream, 3) == 6


def test_a_call_never_waits_for_another_thread_that_took_the_stream_in_the_same_moment(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        lock = MagicMock(**{"locked.return_value": False, "acquire.side_effect": lambda blocking=True: blocking})
        monkeypatch.setattr(stream, "_lock", lock)
        with pytest.raises(StreamError, match="another thread is using it"):
            level(stream, 1)


@pytest.mark.parametrize("closed", ["stream", "fleet"])
def test_closing_in_another_thread_ends_a_call_in_progress(servers: Servers, closed: str) -> None:
    with servers.fleet(timeout_s=300) as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        server = servers.at(stream.host)
        server.hold()
        thread, found = in_thread(lambda: level(stream, 2))
        server.wait_for(2)
        (stream if closed == "stream" else fleet).close()
        thread.join(60)
        server.release()
    [error] = found
    assert isinstance(error, StreamError)
    assert "it was closed" in str(error)


def test_a_stream_that_is_closed_just_before_a_call_says_so(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)

        def close_first(seen: object) -> object:
            stream.close()
            return seen

        monkeypatch.setattr(stream, "_check_picture", close_first)
        with pytest.raises(StreamError, match="it was closed"):
            level(stream, 2)


def test_closing_at_any_moment_of_a_call_raises_only_stream_errors(servers: Servers) -> None:
    with servers.fleet() as fleet:
        for number in range(40):
            stream = fleet.stream("camera-7")

            def push_on(stream: Stream = stream) -> None:
                while True:
                    stream.push(picture(1))

            thread, found = in_thread(push_on)
            time.sleep(number * 0.002)
            stream.close()
            thread.join(60)
            [error] = found
            assert isinstance(error, StreamError), error
            assert "it was closed" in str(error)


def test_closing_waits_only_once_for_a_host_that_does_not_answer(servers: Servers) -> None:
    with servers.fleet(timeout_s=0.5) as fleet:
        streams = [fleet.stream(f"camera-{number}") for number in range(8)]
        for stream in streams:
            level(stream, 1)
        held = servers.at(streams[0].host)
        assert len(held.states) > 1
        held.hold()
    assert sum(one.end for one in held.requests) == 1


def test_after_ctrl_c_the_stream_restarts_and_takes_no_answer_of_the_interrupted_call(servers: Servers) -> None:
    with servers.fleet(timeout_s=300) as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3):
            level(stream, value)
        server = servers.at(stream.host)
        server.hold()

        def interrupt() -> None:
            server.wait_for(4)
            os.kill(os.getpid(), signal.SIGINT)

        thread, _ = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            level(stream, 100)
        thread.join(60)
        server.release()
        assert stream.pushed == 3
        assert level(stream, 4) == 2 + 3 + 4
        assert stream.restarts == 1


def test_a_forked_process_is_refused_and_leaves_the_streams_of_its_parent(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        if (child := os.fork()) == 0:
            code = 1
            try:
                stream.push(picture(2))
            except StreamError as error:
                code = 0 if "forked from the one that opened the fleet" in str(error) else 2
                fleet.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert level(stream, 2) == 3
        assert stream.restarts == 0


PROGRAM = """
import sys
from e3d_deploy.fleet import Fleet
from tests.fleet.fake_server import picture
fleet = Fleet(sys.argv[1:], "kth", timeout_s=60)
stream = fleet.stream("camera-7")
stream.push(picture(1))
print("pushed", flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("fleet.close()", 0), ("stream.push(picture(2))", -signal.SIGINT)],
    ids=["no close", "an exit code", "close", "Ctrl-C in a call"],
)
def test_a_program_ends_although_its_streams_are_open(servers: Servers, then: str, code: int) -> None:
    """The client of tritonclient would wait for its streams forever, unless `stop_stream` was called."""
    if code < 0:
        for one in servers.all:
            one.hold(after=1)
    arguments = [sys.executable, "-c", PROGRAM.format(then=then), *(one.address for one in servers.all)]
    with subprocess.Popen(arguments, stdout=-1, stderr=-1, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if code < 0:
                assert process.stdout.readline() == "pushed\n"
                next(one for one in servers.all if one.requests).wait_for(2)
                process.send_signal(-code)
            process.wait(60)
            assert process.returncode == code, process.stderr.read()
        finally:
            process.kill()


def test_proxies_of_the_environment_are_ignored(servers: Servers) -> None:
    arguments = [sys.executable, "-c", PROGRAM.format(then="fleet.close()"), *(one.address for one in servers.all)]
    proxies = dict.fromkeys(("http_proxy", "grpc_proxy", "https_proxy"), "http://127.0.0.1:1")
    subprocess.run(arguments, check=True, stdout=-1, env=os.environ | proxies, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("absent", ["torch", "onnxruntime", "openvino", "click", "rich", "av"])
def test_the_client_imports_without(absent: str) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; import e3d_deploy.fleet, e3d_deploy.fleet.connection"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("absent", ["tritonclient", "grpc"])
def test_a_missing_library_names_the_extra(absent: str) -> None:
    code = f"""
import sys
sys.modules[{absent!r}] = None
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.fleet import Fleet
try:
    Fleet(["127.0.0.1:1"], "kth")
except BackendUnavailable as error:
    print(error.exit_code, error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"4 fleet: {absent}")
    assert done.stdout.strip().endswith("is not installed; pip install 'e3d_deploy[triton]'")
