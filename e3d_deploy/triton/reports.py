"""Metrics and messages of a model, in the form of Triton."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from e3d_deploy.triton.requests import Counts

METRICS = {
    "streams": ("GAUGE", "Number of streams that hold a state"),
    "frames": ("COUNTER", "Number of pictures seen"),
    "expired": ("COUNTER", "Number of streams closed because their sequences were idle for too long"),
}
"""Kind and description of each metric `e3d_NAME`, by the name of its field in `Counts`."""


class Metrics:
    """Metrics of a model instance at the server's metrics address."""

    def __init__(self, triton: Any, labels: Mapping[str, str]) -> None:
        kinds, self._server = triton.MetricFamily, os.getppid()
        # Triton needs each family for as long as its metrics.
        self._families = {
            name: kinds(name=f"e3d_{name}", description=text, kind=getattr(kinds, kind))
            for name, (kind, text) in METRICS.items()
        }
        self._metrics = {name: family.Metric(labels=dict(labels)) for name, family in self._families.items()}

    def report(self, counts: Counts) -> None:
        """Show the counts of a table."""
        if os.getppid() != self._server:
            return  # A message to a server that has ended would wait for ever, and keep this process from ending.
        for name, metric in self._metrics.items():
            # A counter of Triton has no `set`.
            if change := getattr(counts, name) - metric.value():
                metric.increment(change)


def send_logs(logger: Any) -> None:
    """Send the messages of this package to the server's log."""
    package = logging.getLogger("e3d_deploy")
    package.setLevel(logging.INFO)
    package.addHandler(LogHandler(logger))


class LogHandler(logging.Handler):
    """Writes messages to the server's log."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        write = self._logger.log_info
        if record.levelno >= logging.WARNING:
            write = self._logger.log_error if record.levelno >= logging.ERROR else self._logger.log_warn
        write(self.format(record))
