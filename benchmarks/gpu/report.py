"""Text tables of the results."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.rows import BASE

KERNELS = 12
"""Number of kernels of a profile that are printed; the result file contains more."""


def table(results: Mapping[str, Any]) -> str:
    """Return warnings, results, and skipped and failed rows as text."""
    lines: list[str] = []
    for section, rows in results["sections"].items():
        lines += ["", *of_section(section, rows)]
    lines += ["", *(f"{name}: skipped, {reason}" for name, reason in results["skipped"].items())]
    lines += [f"{name}: FAILED, {reason}" for name, reason in results["failed"].items()]
    warnings = [
        part["warning"]
        for part in (results["environment"], results["environment"].get("in_use", {}))
        if "warning" in part
    ]
    return "\n".join([*(f"warning: {warning}" for warning in warnings), *lines])


def of_section(section: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a section."""
    if section.startswith(("plain", "compiled")):
        yield f"{section:34} {'max diff':>9} {'':4} {'device ms':>10} {'end to end':>10} {'× ' + BASE:>12} " + (
            f"{'of peak: paper':>15} {'executed':>9}"
        )
        yield from (step_line(name, row) for name, row in rows.items())
    elif section.startswith("profile"):
        for name, row in rows.items():
            yield f"{section}, {name}: {row['calls']:.0f} calls and {row['us']:.0f} µs per step"
            yield from (
                f"{one['us']:10.1f} µs {100 * one['share']:5.1f} % {one['calls']:7.1f} ×  {one['kernel'][:80]}"
                for one in row["kernels"][:KERNELS]
            )
    elif section.startswith("micro"):
        for name, row in rows.items():
            yield f"{section}, {name} ({row['gflop']:.2f} GFLOP)"
            yield from (f"    {variant:24} {variant_line(one)}" for variant, one in row["variants"].items())
    else:
        yield section
        for name, row in rows.items():
            yield f"    {name:40} " + ", ".join(f"{key} {value}" for key, value in row.items())


def step_line(name: str, row: Mapping[str, Any]) -> str:
    """Return the line of a row of the sections `plain` and `compiled`."""
    shares = row.get("share_of_peak", {})
    paper, executed = (f"{100 * shares[one]:.1f} %" if one in shares else "" for one in ("paper", "executed"))
    verdict = "FAIL" if not row["passed"] else "PASS" if "budget" in row else ""
    times = f"{row['device_ms']:10.3f} {row['end_to_end_ms']:10.3f} {row['speedup']:12.2f}"
    return f"{name:34} {row['predictions'] or 0:9.2e} {verdict:4} {times} {paper:>15} {executed:>9}"


def variant_line(one: Mapping[str, Any]) -> str:
    """Return the figures of a variant in the section `micro` as text."""
    if "not_run" in one:
        return f"not run, {one['not_run']}"
    rate = f" {one['tflops']:8.2f} TFLOP/s" if one["tflops"] is not None else ""
    off = f"  relative error {one['relative_error']:.1e}" if "relative_error" in one else ""
    return f"{one['us']:10.2f} µs{rate}{off}"
