"""Contract of all backends: calls of a stream under signals, forks, finalizers and threads."""

import copy
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime import Predictor, Stream
from e3d_deploy.runtime.backends.specs import find, has_libraries
from e3d_deploy.runtime.process import IN_BACKEND, in_backend
from tests.fake_backend import FakeBackend, predictor_of
from tests.fake_backend import picture as fake_picture
from tests.runtime.backends.cases import Case
from tests.runtime.backends.test_contract import close_to

INTERRUPTS = 60
LAST: list[KeyboardInterrupt] = []
"""Last exception, kept with its stack frames as a notebook does."""


def picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (16, 24, 1), np.uint8)


def pushed(predictor: Predictor, count: int, renewal: str | None = None) -> Stream:
    stream = predictor.stream(renewal=renewal)
    for number in range(count):
        stream.push(picture(number))
    return stream


@contextmanager
def unraisable() -> Iterator[list[Any]]:
    """Collect exceptions that Python cannot propagate, such as those in finalizers."""
    found: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, found.append
    try:
        yield found
    finally:
        sys.unraisablehook = hook


def interrupted(call: Callable[[], object], seconds: float) -> bool:
    """Repeat a call until a signal interrupts it like Ctrl-C; return False if no interrupt arrives within a second.

    Python 3.11 does not notice a signal that a thread of PyTorch receives, which happens once in thousands of calls.

    Args:
        seconds: time until the signal (s).
    """
    armed, end = [True], time.monotonic() + 1

    def interrupt(*_: object) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while armed and time.monotonic() < end:
            call()
        armed.clear()
    except KeyboardInterrupt as error:
        LAST[:] = [error]
        return True
    finally:
        signal.signal(signal.SIGALRM, former)
    return False


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize(
    "renewal",
    [pytest.param("none", marks=pytest.mark.slow), "refresh:2", pytest.param("replay", marks=pytest.mark.slow)],
)
def test_an_interrupted_stream_stays_at_its_last_good_picture(predictor: Predictor, renewal: str) -> None:
    stream, chance = predictor.stream(renewal=renewal), random.Random(0)
    calls = (lambda: stream.push(picture(stream.pushed)), lambda: stream.predict(2), stream.snapshot)
    stream.push(picture(0))
    seconds = max(_seconds(calls[0]), 2e-4)
    with unraisable() as unseen:
        for number in range(INTERRUPTS // 3):
            if stream.pushed > 30:
                stream.reset()
                stream.push(picture(0))
            interrupted(calls[number % 3], chance.uniform(1e-5, 3 * seconds))
    assert KeyboardInterrupt not in [one.exc_type for one in unseen]
    close_to(stream.forecast(2), pushed(predictor, stream.pushed, renewal).forecast(2))


# The finalizers of the fake backend are Python code, in which Ctrl-C is lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_interrupted_short_calls_leave_the_stream_usable() -> None:
    backend, chance = FakeBackend(), random.Random(0)
    # Events take their lock in Python code, where Ctrl-C can leave it locked.
    backend.entered = backend.gate = SimpleNamespace(set=lambda: None, wait=lambda _: None)  # type: ignore[assignment]
    stream = predictor_of(backend).stream()
    calls = (stream.reset, lambda: stream.push(fake_picture(1)), stream.snapshot)
    assert sum(interrupted(calls[number % 3], chance.uniform(1e-4, 2e-3)) for number in range(600))
    stream.reset()
    stream.push(fake_picture(1))
    assert stream.pushed == 1


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_closing_during_a_call_ends_it_without_hanging(
    case: Case, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pushed(predictor, 2)
    inner = next(name for name in ("run", "run_step", "step") if hasattr(case.backend, name))
    work, said = getattr(case.backend, inner), list[str]()

    def as_a_finalizer(*args: Any, **kwargs: Any) -> Any:
        for call in (stream.snapshot, lambda: stream.push(picture(9))):
            with pytest.raises(StreamError) as error:
                call()
            said.append(str(error.value))
        predictor.close()
        return work(*args, **kwargs)

    monkeypatch.setattr(case.backend, inner, as_a_finalizer)
    with suppress(StreamError):
        stream.push(picture(2))
    assert ["during another call in the same thread" in words for words in said] == [True, True]
    assert stream.pushed in (2, 3)
    predictor.close()
    with pytest.raises(StreamError, match="closed"):
        stream.push(picture(2))
    with pytest.raises(StreamError, match="closed"):
        case.backend.initial_state(1)


def test_calls_inside_a_step_cause_no_deadlock(
    case: Case, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, stream = predictor.streams(), pushed(predictor, 2)
    slot = streams.open()
    inner = next(name for name in ("run", "run_step", "step") if hasattr(case.backend, name))
    work, calls = getattr(case.backend, inner), list[str]()

    def as_a_finalizer(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is user and not calls:
            calls.append("began")
            other = threading.Thread(target=slot.push, args=(picture(0),))
            other.start()
            other.join()
            time.sleep(0.02)  # Now the thread of the streams waits for the lock that this thread holds.
            assert in_backend() == (case.spec.name != "torch")  # The backend torch has no lock.
            if in_backend():
                for call in (slot.wait, slot.snapshot, lambda: slot.push(picture(1)), lambda: slot.predict(1)):
                    with pytest.raises(StreamError, match="inside a step"):
                        call()
            slot.close()
            streams.close()
            predictor.close()
            calls.append("ended")
        return work(*args, **kwargs)

    def push() -> None:
        with suppress(StreamError):
            stream.push(picture(2))

    user = threading.Thread(target=push, daemon=True)
    monkeypatch.setattr(case.backend, inner, as_a_finalizer)
    user.start()
    user.join(60)
    assert calls == ["began", "ended"]
    streams.close(20_000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 and later warn about forks.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_must_load_the_bundle_again(case: Case, predictor: Predictor) -> None:
    stream = pushed(predictor, 2)
    calls: tuple[Callable[[], object], ...] = (
        lambda: stream.push(picture(2)),
        lambda: stream.predict(2),
        stream.snapshot,
        stream.reset,
        predictor.stream,
        lambda: case.backend.step(np.zeros((1, 1, 16, 24), np.float32), None),
    )
    IN_BACKEND[0] = case.backend  # As if another thread were in a step.
    with stream._lock, case.backend.lock:  # type: ignore[attr-defined]  # The other thread would hold both locks.
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        told = 0
        for call in calls:
            try:
                call()
            except StreamError as error:
                told += "forked" in str(error)
        told += 0 not in IN_BACKEND
        predictor.close()
        case.backend.close()
        os._exit(told)
    del IN_BACKEND[0]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(calls) + 1
    assert stream.predict(2).shape == (2, 16, 24, 1)


def test_memory_of_states_in_reference_cycles_is_reused(case: Case) -> None:
    if case.spec.device != "gpu":
        pytest.skip("its states are NumPy arrays, which garbage collection frees")
    owned = case.backend.cuda._owned  # type: ignore[attr-defined]
    counts = []
    for _ in range(4):
        for _ in range(12):
            cycle = [case.backend.from_arrays(case.backend.to_arrays(case.backend.initial_state(1)))]
            cycle.append(cycle)  # type: ignore[arg-type]
        del cycle
        gc.collect()
        counts.append(len(owned))
    assert counts[-1] <= counts[0]


def test_a_forecast_that_times_out_is_an_error(predictor: Predictor) -> None:
    stream, out = pushed(predictor, 2), np.zeros((3, 16, 24, 1), np.uint8)
    expected = stream.predict(3)
    with pytest.raises(StreamError, match="not done within 0 ms"):
        stream.predict(3, out, timeout_ms=0)
    with pytest.raises(ValueError, match="timeout_ms: got nan"):
        stream.predict(3, timeout_ms=float("nan"))
    np.testing.assert_array_equal(stream.predict(3, out, timeout_ms=60_000), expected)
    assert stream.pushed == 2


def test_the_prediction_cannot_be_overwritten(predictor: Predictor) -> None:
    stream = pushed(predictor, 2)
    expected, prediction = stream.forecast(2), stream.prediction
    assert prediction is not None
    with pytest.raises(ValueError, match="read-only"):
        prediction[:] = 0
    np.testing.assert_array_equal(stream.forecast(2), expected)


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copying_a_stream_or_predictor_names_the_alternative(
    predictor: Predictor, make_copy: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match=r"take a snapshot\(\)"):
        make_copy(predictor.stream())
    with pytest.raises(TypeError, match="give the other process the path"):
        make_copy(predictor)


FORKS = """
import os, sys, time
import numpy as np
import e3d_deploy.runtime as e3d

predictor = e3d.load(sys.argv[1], sys.argv[2], threads=2)
stream = predictor.stream(renewal='none')
stream.push(np.zeros((16, 24, 1), np.uint8))
if (child := os.fork()) == 0:
    del predictor, stream
    sys.exit(7)
until = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
    time.sleep(0.02)
sys.exit(os.waitstatus_to_exitcode(ended[1]) if ended[0] else os.kill(child, 9))
"""
DAEMONS = """
import sys, threading
import numpy as np
import e3d_deploy.runtime as e3d

predictor = e3d.load(sys.argv[1], sys.argv[2])
threading.excepthook = lambda _: None
begun = threading.Barrier(3)

def camera():
    stream = predictor.stream(renewal='none')
    stream.push(np.zeros((16, 24, 1), np.uint8))
    begun.wait()
    while True:
        stream.push(np.zeros((16, 24, 1), np.uint8))
        stream.predict(2)

for _ in range(2):
    threading.Thread(target=camera, daemon=True).start()
begun.wait()
sys.exit(7)
"""
SAVES = """
import atexit, sys

@atexit.register
def save():
    stream.push(np.zeros((16, 24, 1), np.uint8))
    print(stream.pushed, stream.snapshot().pushed, stream.predict(2).shape)

import numpy as np
import e3d_deploy.runtime as e3d

predictor = e3d.load(sys.argv[1], sys.argv[2])
streams = predictor.streams(renewal='none')
stream = OPENED
stream.push(np.zeros((16, 24, 1), np.uint8))
stream.snapshot()
sys.exit(7)
"""
SAVES_PLAIN = SAVES.replace("OPENED", "predictor.stream(renewal='none')")
SAVES_SLOT = SAVES.replace("OPENED", "streams.open()")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("script", "said"),
    [(FORKS, ""), (DAEMONS, ""), (SAVES_PLAIN, "2 2 (2, 16, 24, 1)"), (SAVES_SLOT, "2 2 (2, 16, 24, 1)")],
    ids=["forks", "daemons", "saves", "saves many"],
)
def test_a_program_exits_with_its_own_exit_code(name: str, script: str, said: str, exported: Path) -> None:
    if not has_libraries(find(name)) or ("fork" in script and not hasattr(os, "fork")):
        pytest.skip(f"{name} or fork is not here")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(exported / "tiny.e3d"), name]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (7, said, "")
