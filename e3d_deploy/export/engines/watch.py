"""A TensorRT build in a separate thread: progress, and cancellation with Ctrl-C."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from e3d_deploy.progress import Notify

PATIENCE_S = 1.0
"""Maximum wait for the builder after Ctrl-C (s); the process then ends within two seconds in total."""
BUILDING = "e3d build"
"""Name of the thread of a builder. An interpreter that shuts down while such a thread runs crashes."""


def in_thread(work: Callable[[], Any], monitor: Any) -> Any:
    """Run `work` in a thread that Ctrl-C does not interrupt; cancel it through its monitor on Ctrl-C.

    The builder checks its monitor only between steps, and a step may take half a minute. A builder that does not stop
    within `PATIENCE_S` continues in its thread, and its result is discarded. `work` must therefore hold references to
    all objects that the builder reads.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name=BUILDING).start()
    try:
        while not future.done():
            wait([future], timeout=0.1)
    except KeyboardInterrupt:
        monitor.cancelled = True
        wait([future], timeout=PATIENCE_S)
        raise
    return future.result()


def make_monitor(trt: Any, progress: Notify, expected: float | None) -> Any:
    """Return a progress monitor for a builder; the build stops after the current step if `cancelled` is set.

    Args:
        expected: expected time of the build, shown with the progress (s).
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled, self.started = False, time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.report(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            self.report(phase)
            return not self.cancelled

        def report(self, phase: str) -> None:
            whole = "" if expected is None else f" of about {expected:.0f}"
            progress(f"{phase}, {time.monotonic() - self.started:.0f} s{whole}")

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
