"""Plan of a run: which rows fit into the time, the most valuable first."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

START_S = 5.0
"""Estimated start of a process on a GPU: imports, context, model; without `--costs`."""
QUICK_CPU_S = 1.0
"""Estimated row or start with the tiny model on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of a section: what is run, recorded, skipped or failed as a whole."""

    section: str
    row: str
    tier: int
    """1 for what a short run should have; larger numbers come later."""
    cost_s: float
    """Estimated time on a GPU."""
    work: Callable[[], dict[str, Any]] = field(repr=False, compare=False)
    """Run it and return its result."""
    absent: str = ""
    """Reason why it cannot run, where that is known before any process starts."""

    @property
    def name(self) -> str:
        """Name in the result file and in messages."""
        return f"{self.section}: {self.row}"


@dataclass(frozen=True)
class Costs:
    """Estimated or measured times of rows and starts."""

    measured: Mapping[str, float] = field(default_factory=dict)
    """Times of rows in a former run (s), by name."""
    start_s: float = START_S
    flat_s: float | None = None
    """One estimate for every row; None takes that of the row."""

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Read measured times from a former result file.

        Raises:
            ValueError: not a result file of this benchmark.
        """
        try:
            results = json.loads(path.read_text())
            starts = [float(start) for start in results["starts"]]
            seconds = {name: float(one) for name, one in results["seconds"].items()}
            if not all(0 <= time < math.inf for time in (*starts, *seconds.values())):
                raise ValueError("a time that is no number of seconds")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a result file of benchmarks.gpu ({error}); give its gpu.json") from error
        return cls(seconds, median(starts) if starts else START_S)

    def of(self, unit: Unit) -> float:
        """Return the time of a row (s)."""
        return self.measured.get(unit.name, unit.cost_s if self.flat_s is None else self.flat_s)


@dataclass(frozen=True)
class Plan:
    """Rows in the order in which they run, and rows for which there is no time."""

    kept: tuple[Unit, ...]
    left_out: tuple[Unit, ...]
    seconds: float
    """Estimated time of the rows that are kept."""

    def processes(self) -> list[tuple[Unit, ...]]:
        """Return the rows by process: those of one section share one, at the place of their most valuable row."""
        return by_section(self.kept)


def seconds(text: str) -> float:
    """Read a time above 0 (s)."""
    found = float(text)
    if not 0 < found < math.inf:  # NaN is neither
        raise ValueError(text)
    return found


def plan(units: Sequence[Unit], seconds: float, costs: Costs) -> Plan:
    """Keep the rows that fit into the time, by value; a row that does not fit leaves its time to later ones."""
    kept: list[Unit] = []
    left_out: list[Unit] = []
    used, started = 0.0, set[str]()
    ready = [unit for unit in units if not unit.absent]
    for unit in sorted(ready, key=lambda unit: unit.tier):  # stable, so rows of a tier stay in their order
        cost = costs.of(unit) + (0 if unit.section in started else costs.start_s)
        if used + cost > seconds:
            left_out.append(unit)
            continue
        used += cost
        started.add(unit.section)
        kept.append(unit)
    return Plan(tuple(kept), tuple(left_out), used)


def by_section(units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Return units by section, in the order in which sections appear."""
    sections = dict.fromkeys(unit.section for unit in units)
    return [tuple(unit for unit in units if unit.section == section) for section in sections]


def process_s(units: Sequence[Unit], costs: Costs) -> float:
    """Return the estimated time of a process that runs these rows."""
    return costs.start_s + sum(costs.of(unit) for unit in units)


def described(found: Plan, seconds: float, costs: Costs) -> str:
    """Return a plan as lines of text."""
    lines = [f"plan for {seconds:.0f} s, {found.seconds:.0f} s estimated:"]
    for units in by_section(found.kept):
        lines.append(f"{process_s(units, costs):6.0f} s  {names_of(units)}")
    if found.left_out:
        left = seconds - found.seconds
        lines.append(
            f"left out, as {left:.0f} s are left (a row of another section needs {costs.start_s:.0f} s to start):"
        )
    for units in by_section(found.left_out):
        lines.append(f"{sum(costs.of(unit) for unit in units):6.0f} s  {names_of(units)}")
    return "\n".join(lines)


def names_of(units: Sequence[Unit]) -> str:
    """Return rows of one section as text."""
    return f"{units[0].section}: {', '.join(unit.row for unit in units)}"
