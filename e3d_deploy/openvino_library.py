"""OpenVINO, imported so that it contacts nobody and needs no home folder.

The import of version 2026.4 reports to Google Analytics by way of `openvino_telemetry`, for which it writes an
identification into `~/intel`; without a home folder it fails. Where that package is missing, it takes its own stub, so
it finds none here. A program that wants the reports imports OpenVINO before.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

__all__ = ["openvino"]

TELEMETRY = "openvino_telemetry"


@contextmanager
def _silently() -> Iterator[None]:
    """Let nobody find the package that reports within the block."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == TELEMETRY}
    for name in before:
        del sys.modules[name]
    sys.modules[TELEMETRY] = cast(ModuleType, None)  # the import system's sign for a module that is missing
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        sys.modules.update(before)


with _silently():
    import openvino
