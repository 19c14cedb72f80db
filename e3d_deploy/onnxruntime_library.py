"""ONNX Runtime, imported so that it contacts nobody and leaves signals to the program.

The import of version 1.32 starts a thread that reports to Microsoft, unless ORT_DISABLE_TELEMETRY is set by then. A
program that wants that sets it to 0, or imports ONNX Runtime before. A signal that a thread of a library received sets
no flag that Python 3.11 looks at, so threads that begin here have all signals blocked: of 6,000 timers one had been
lost, and so might a Ctrl-C.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from e3d_deploy.libraries import SWITCH

__all__ = ["onnxruntime"]


@contextmanager
def _silently() -> Iterator[None]:
    """Switch telemetry off and block all signals within the block."""
    ours = SWITCH not in os.environ
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    before = mask(signal.SIG_BLOCK, signal.valid_signals()) if mask else None
    if ours:
        os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if ours:
            del os.environ[SWITCH]
        if mask:
            mask(signal.SIG_SETMASK, before)


with _silently():
    import onnxruntime
