"""Plan of a run: the rows that fit into the time limit, ordered by value."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

START_S = 5.0
"""Estimated start time of a process on a GPU (s): imports, CUDA context and model. `--costs` replaces it."""
QUICK_CPU_S = 1.0
"""Estimated time of a row, and of the start of a process, with the tiny model on a CPU (s)."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of a section; it is run, recorded, skipped or failed as a whole."""

    section: str
    row: str
    tier: int
    """Priority; smaller numbers run first, and short runs should include 1."""
    cost_s: float
    """Estimated time on a GPU (s)."""
    work: Callable[[], dict[str, Any]] = field(repr=False, compare=False)
    """Function that runs the row and returns its result."""
    absent: str = ""
    """Reason why the row cannot run, if known before any process starts; otherwise empty."""

    @property
    def name(self) -> str:
        """Name in the result file and in messages."""
        return f"{self.section}: {self.row}"


@dataclass(frozen=True)
class Costs:
    """Estimated or measured times of rows and of the starts of processes."""

    measured: Mapping[str, float] = field(default_factory=dict)
    """Times of rows in an earlier run (s), by name."""
    start_s: float = START_S
    flat_s: float | None = None
    """Estimate for every row (s); None uses each row's own estimate."""

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Read measured times from an earlier result file.

        Raises:
            ValueError: `path` is not a result file of this benchmark.
        """
        try:
            results = json.loads(path.read_text())
            starts = [float(start) for start in results["starts"]]
            seconds = {name: float(one) for name, one in results["seconds"].items()}
            if not all(0 <= time < math.inf for time in (*starts, *seconds.values())):
                raise ValueError("a time is negative or not finite")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a result file of benchmarks.gpu ({error}); give its gpu.json") from error
        return cls(seconds, median(starts) if starts else START_S)

    def of(self, unit: Unit) -> float:
        """Return the time of a row (s)."""
        return self.measured.get(unit.name, unit.cost_s if self.flat_s is None else self.flat_s)


@dataclass(frozen=True)
class Plan:
    """Rows that run, in order, and rows that do not fit into the time."""

    kept: tuple[Unit, ...]
    left_out: tuple[Unit, ...]
    seconds: float
    """Estimated time of the kept rows, including starts (s)."""

    def processes(self) -> list[tuple[Unit, ...]]:
        """Return the rows of each process.

        The rows of a section share a process; processes are ordered by their most valuable row.
        """
        return by_section(self.kept)


def seconds(text: str) -> float:
    """Parse a time (s).

    Raises:
        ValueError: `text` is not a finite number above 0.
    """
    found = float(text)
    if not 0 < found < math.inf:  # also false for NaN
        raise ValueError(text)
    return found


def plan(units: Sequence[Unit], seconds: float, costs: Costs) -> Plan:
    """Select the rows that fit into the time (s), ordered by value.

    A row that does not fit is left out, and later rows can use the time.
    """
    kept: list[Unit] = []
    left_out: list[Unit] = []
    used, started = 0.0, set[str]()
    ready = [unit for unit in units if not unit.absent]
    for unit in sorted(ready, key=lambda unit: unit.tier):  # the sort is stable, so rows of a tier keep their order
        cost = costs.of(unit) + (0 if unit.section in started else costs.start_s)
        if used + cost > seconds:
            left_out.append(unit)
            continue
        used += cost
        started.add(unit.section)
        kept.append(unit)
    return Plan(tuple(kept), tuple(left_out), used)


def by_section(units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Group units by section, in the order of the first unit of each section."""
    sections = dict.fromkeys(unit.section for unit in units)
    return [tuple(unit for unit in units if unit.section == section) for section in sections]


def process_s(units: Sequence[Unit], costs: Costs) -> float:
    """Return the estimated time of a process that runs these rows (s)."""
    return costs.start_s + sum(costs.of(unit) for unit in units)


def described(found: Plan, seconds: float, costs: Costs) -> str:
    """Return a plan as lines of text."""
    lines = [f"plan for {seconds:.0f} s, {found.seconds:.0f} s estimated:"]
    for units in by_section(found.kept):
        lines.append(f"{process_s(units, costs):6.0f} s  {names_of(units)}")
    if found.left_out:
        left = seconds - found.seconds
        lines.append(
            f"left out, because {left:.0f} s are left (a row of another section needs {costs.start_s:.0f} s to start):"
        )
    for units in by_section(found.left_out):
        lines.append(f"{sum(costs.of(unit) for unit in units):6.0f} s  {names_of(units)}")
    return "\n".join(lines)


def names_of(units: Sequence[Unit]) -> str:
    """Return the section and the names of its rows as text."""
    return f"{units[0].section}: {', '.join(unit.row for unit in units)}"
