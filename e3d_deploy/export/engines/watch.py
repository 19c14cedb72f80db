"""A running build: what the builder says, how far it is, and Ctrl-C."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

Progress = Callable[[str, float, float | None], None]
"""Called with the phase, the seconds since the start, and the seconds that the last such build took, if one is
remembered; from threads of the builder."""
Remark = Callable[[str], None]
"""Called with what a user should know."""


PATIENCE_S = 1.0
"""How long Ctrl-C waits for the builder; with leaving the process it makes less than two seconds."""
BUILDING = "e3d build"
"""Name of the thread of a builder. While there is one, the interpreter cannot be taken down without a crash."""


def silent(*_: object) -> None:
    """For progress and remarks that nobody wants."""


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


def make_monitor(trt: Any, progress: Progress, expected: float | None) -> Any:
    """What a builder reports to, and asks whether to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled, self.started = False, time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress(phase, time.monotonic() - self.started, expected)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, time.monotonic() - self.started, expected)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
