"""OpenVINO, imported so that it sends no telemetry and needs no home folder.

The import of version 2026.4 reports to Google Analytics through the package `openvino_telemetry`. The package writes an
identifier to `~/intel`, and the import fails without a home folder. OpenVINO uses its own stub if the package is
missing, so the package is hidden during the import. A program that wants the reports imports OpenVINO before
e3d_deploy.
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
    """Hide the telemetry package from the import system while the block runs."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == TELEMETRY}
    for name in before:
        del sys.modules[name]
    sys.modules[TELEMETRY] = cast(ModuleType, None)  # None makes the import system raise ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        sys.modules.update(before)


with _silently():
    import openvino
