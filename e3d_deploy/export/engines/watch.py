"""A running build: what the builder says, how far it is, and Ctrl-C."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from e3d_deploy.progress import Notify

PATIENCE_S = 1.0
"""Longest wait for the builder after Ctrl-C (s); the process then ends within two seconds in all."""
BUILDING = "e3d build"
"""Name of the thread of a builder. While there is one, the interpreter cannot be taken down without a crash."""


def in_thread(work: Callable[[], Any], monitor: Any) -> Any:
    """Run `work` where Ctrl-C does not reach it, and cancel it by its monitor when Ctrl-C comes.

    The builder asks its monitor between steps alone, and a step may take half a minute: what has not ended
    soon goes on in its thread, and its result is thrown away. So `work` must hold all that the builder reads.
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
    """Return a progress monitor for a builder; setting its `cancelled` stops the build after the current step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled, self.started = False, time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.tell(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase)
            return not self.cancelled

        def tell(self, phase: str) -> None:
            whole = "" if expected is None else f" of about {expected:.0f}"
            progress(f"{phase}, {time.monotonic() - self.started:.0f} s{whole}")

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
