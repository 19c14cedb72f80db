"""Result file: read, changed by one process at a time, and replaced as a whole after each row."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e3d_deploy.files import write_file


class Results:
    """Results so far.

    While a section runs, its process alone writes the file; the parent reads it when that process has ended.
    """

    def __init__(self, path: Path, data: dict[str, Any] | None = None) -> None:
        empty: dict[str, Any] = {"benchmark": "gpu", "environment": {}, "sections": {}, "skipped": {}, "failed": {}}
        self.path, self.data = path, data or {**empty, "traces": {}, "seconds": {}, "starts": [], "after": {}}

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a file that `write` wrote."""
        return cls(path, json.loads(path.read_text()))

    def write(self) -> None:
        """Replace the file; at every moment it is whole."""
        add_shares(self.data)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, (json.dumps(finite(self.data), indent=1) + "\n").encode())

    def take_over(self) -> None:
        """Read what an ended process wrote, and remove what it was writing when it was killed."""
        for partial in self.path.parent.glob(f".{self.path.name}.*"):
            partial.unlink(missing_ok=True)
        self.data = json.loads(self.path.read_text())

    def running(self, section: str, row: str) -> None:
        """Note which row runs, so that a crash can be told of it."""
        self.data["running"] = f"{section}: {row}"
        self.write()

    def done(self, section: str, row: str, result: Mapping[str, Any]) -> None:
        """Record the result of a row."""
        self.data["sections"].setdefault(section, {})[row] = result

    def skip(self, name: str, reason: str) -> None:
        """Record why a row was not run."""
        self.data["skipped"][name] = reason

    def fail(self, name: str, line: str, trace: str = "") -> None:
        """Record why a row has no result."""
        self.data["failed"][name] = line
        if trace:
            self.data["traces"][name] = trace

    def decided(self, section: str, row: str) -> bool:
        """Return True where a row has a result, was skipped or failed."""
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
    """Give each timed row its share of the peak that `roofline` measured for its type."""
    peaks = data["sections"].get("roofline", {})
    for rows in data["sections"].values():
        for result in rows.values():
            peak = peaks.get(result.get("precision"), {}).get("tflops")
            if peak and isinstance(rates := result.get("tflops"), dict):
                result["share_of_peak"] = {name: round(rate / peak, 4) for name, rate in rates.items()}


def finite(value: Any) -> Any:
    """Put None in the place of NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
