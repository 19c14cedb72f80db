"""ONNX Runtime, imported so that it sends no telemetry and its threads receive no signals.

The import of version 1.32 starts a thread that reports to Microsoft unless ORT_DISABLE_TELEMETRY is set. A program that
wants these reports sets ORT_DISABLE_TELEMETRY to 0, or imports ONNX Runtime before e3d_deploy. Threads that start
during the import have all signals blocked, because Python 3.11 can miss a signal that is delivered to a thread of a
library: in a test, one of 6,000 timer signals was lost, and a Ctrl-C could be lost as well.
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
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
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
