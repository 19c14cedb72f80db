"""Result file of a run, which is replaced atomically after each row."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e3d_deploy.files import write_file


class Results:
    """Results of a run so far, and their file.

    While the process of a section runs, only this process writes the file. Its parent reads the file after its end.
    """

    def __init__(self, path: Path, data: dict[str, Any] | None = None) -> None:
        empty: dict[str, Any] = {"benchmark": "gpu", "environment": {}, "sections": {}, "skipped": {}, "failed": {}}
        self.path, self.data = path, data or {**empty, "traces": {}, "seconds": {}, "starts": [], "after": {}}

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a result file."""
        return cls(path, json.loads(path.read_text()))

    def write(self) -> None:
        """Replace the file atomically."""
        add_shares(self.data)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, (json.dumps(finite(self.data), indent=1) + "\n").encode())

    def take_over(self) -> None:
        """Read the results that an ended process wrote, and delete its temporary files."""
        for partial in self.path.parent.glob(f".{self.path.name}.*"):
            partial.unlink(missing_ok=True)
        self.data = json.loads(self.path.read_text())

    def running(self, section: str, row: str) -> None:
        """Record which row is running, so that a crash can be attributed to it."""
        self.data["running"] = f"{section}: {row}"
        self.write()

    def done(self, section: str, row: str, result: Mapping[str, Any]) -> None:
        """Record the result of a row."""
        self.data["sections"].setdefault(section, {})[row] = result

    def skip(self, name: str, reason: str) -> None:
        """Record the reason why a row was not run."""
        self.data["skipped"][name] = reason

    def fail(self, name: str, line: str, trace: str = "") -> None:
        """Record that a row failed.

        Args:
            name: section and row, "SECTION: ROW".
            line: the error in one line.
            trace: end of the traceback, if any.
        """
        self.data["failed"][name] = line
        if trace:
            self.data["traces"][name] = trace

    def decided(self, section: str, row: str) -> bool:
        """Return True if a row has a result, was skipped or failed."""
        name = f"{section}: {row}"
        return (
            row in self.data["sections"].get(section, {}) or name in self.data["skipped"] or name in self.data["failed"]
        )

    def wrong(self) -> list[str]:
        """Return the rows whose comparison failed."""
        sections = self.data["sections"].items()
        return [
            f"{section}: {row}"
            for section, rows in sections
            for row, result in rows.items()
            if result.get("passed") is False
        ]


def add_shares(data: dict[str, Any]) -> None:
    """Add to each timed row its share of the peak rate that the section `roofline` measured for its precision."""
    peaks = data["sections"].get("roofline", {})
    for rows in data["sections"].values():
        for result in rows.values():
            peak = peaks.get(result.get("precision"), {}).get("tflops")
            if peak and isinstance(rates := result.get("tflops"), dict):
                result["share_of_peak"] = {name: round(rate / peak, 4) for name, rate in rates.items()}


def finite(value: Any) -> Any:
    """Return a copy of a JSON value with None in place of NaN and infinity, which JSON does not support."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
