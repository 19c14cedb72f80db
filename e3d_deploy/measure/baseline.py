"""Comparison of a benchmark with an earlier benchmark on the same machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e3d_deploy.errors import BenchmarkError, ConfigError
from e3d_deploy.measure.results import SCHEMA, Comparison, Ratio

MAX_BYTES = 64_000_000
"""Maximum size of a file that is read. Results are a few thousand bytes. A path given by mistake may be a video, or a
device that can be read without end."""


def read_baseline(path: Path) -> dict[str, Any]:
    """Read a result of `e3d benchmark --json` from a file.

    Raises:
        ConfigError: The file does not exist, or is a folder.
        BenchmarkError: The file is not a result of `e3d benchmark --json`, or has a different schema.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a file that `e3d benchmark BUNDLE --json` printed")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; make one with `e3d benchmark BUNDLE --json > {path}`") from error
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES / 1e6:.0f} MB")
        found = json.loads(content.decode())
        schema = found["schema"]
        conditions(found)
        medians(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BenchmarkError(
            f"{path}: not a result of `e3d benchmark --json` ({_problem(error)}); make it again"
        ) from error
    if schema != SCHEMA:
        raise BenchmarkError(f"{path}: schema {schema!r}, expected {SCHEMA}; make it again")
    result: dict[str, Any] = found
    return result


def _problem(error: Exception) -> str:
    """Describe what is wrong with a file, without quoting its content."""
    if isinstance(error, UnicodeDecodeError):
        return "binary, not text"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    if isinstance(error, KeyError):
        return f"without {error}"
    return str(error).partition("\n")[0] if isinstance(error, ValueError) else "JSON of a different form"


def compare(result: Mapping[str, Any], baseline: Mapping[str, Any], tolerance: float) -> Comparison:
    """Compare the median times of two benchmarks, given as JSON values.

    A task on a backend has regressed if its ratio is more than 1 + tolerance. Nothing counts as regressed if processor,
    GPU, threads, bundle or batch size differ.
    """
    ours, theirs = conditions(result), conditions(baseline)
    different = [f"{name}: {theirs[name]}, now {ours[name]}" for name in ours if ours[name] != theirs[name]]
    now, before = medians(result), medians(baseline)
    rows = [
        Ratio(
            what=what,
            backend=backend,
            median_ms=now[what, backend],
            baseline_ms=before[what, backend],
            ratio=now[what, backend] / before[what, backend],
            regressed=not different and now[what, backend] > (1 + tolerance) * before[what, backend],
        )
        for what, backend in now
        if (what, backend) in before
    ]
    return Comparison(
        date=baseline["environment"].get("date"),
        tolerance=tolerance,
        comparable=not different,
        different=tuple(different),
        rows=tuple(rows),
        missing=tuple(f"{what} of {backend}" for what, backend in sorted(now.keys() ^ before.keys())),
    )


def regressions(comparison: Comparison) -> list[str]:
    """Return one sentence for each task and backend that has regressed."""
    return [
        f"{row.what} of {row.backend}: {row.median_ms:.2f} ms is {row.ratio:.2f} times the baseline's "
        f"{row.baseline_ms:.2f} ms, but at most {1 + comparison.tolerance:.2f} times is allowed"
        for row in comparison.rows
        if row.regressed
    ]


def conditions(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions that must be equal for two results to be compared."""
    return {
        "cpu": result["environment"]["cpu"],
        "gpu": result["environment"].get("gpu"),  # earlier versions did not record the GPU
        "threads": result["environment"]["threads"],
        "bundle": result["bundle"]["digest"][:16],
        "batch": result["bundle"]["batch"],
    }


def medians(result: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return the median time of each result, by task and backend (ms).

    Raises:
        ValueError: A median is not a positive, finite number.
    """
    found = {(str(row["what"]), str(row["backend"])): float(row["median_ms"]) for row in result["results"]}
    if not all(0 < median < float("inf") for median in found.values()):
        raise ValueError("a median is not a positive, finite time")
    return found
