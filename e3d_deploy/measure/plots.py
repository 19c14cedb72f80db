"""Plots of drift and latency as PNG files, made with Matplotlib (extra `plot`)."""

from collections.abc import Sequence
from itertools import cycle
from math import isfinite
from typing import Any

from e3d_deploy.measure.results import BenchmarkResult, Row, StreamCurves
from e3d_deploy.plots import BLUE, GRAY, RED, new_figure, plain, png
from e3d_deploy.runtime.verify import Report

COLORS = (BLUE, "#d9822b", "#2e8b57", "#7b4ea3", GRAY)
"""Colours of the lines of a plot."""


def drift(report: Report) -> bytes:
    """Plot the difference from PyTorch at each step of the rollout on a logarithmic axis, with the budget."""
    figure, axes = new_figure(7, 3.6)
    lines = {kind: [step[kind] for step in report.states] for kind in ("hidden", "cell", "memory") if report.states}
    for name, values in {"predictions": report.predictions, **lines}.items():
        # A difference of 0 has no place on a logarithmic axis; it is drawn at the bottom.
        shown = [max(value, 1e-9) for value in values]
        thick = {"marker": "o", "ms": 3} if name == "predictions" else {"lw": 0.8}
        axes.plot(range(1, len(shown) + 1), shown, label=f"{report.backend}: {name}", **thick)
    if isfinite(report.budget):
        axes.axhline(report.budget, color="black", lw=1.2, ls="--", label="budget")
    axes.axvline(report.context_length + 0.5, color=GRAY, lw=0.8, ls=":", label="end of the context")
    axes.set(yscale="log", xlabel="step", ylabel="largest |difference| from PyTorch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(report.predictions) > report.steps:
        axes.axvline(report.steps + 0.5, color=GRAY, lw=0.8, ls="--", label="last step checked")
    drawn = [report.budget, *report.predictions, *(value for values in lines.values() for value in values), 1e-9]
    axes.set_ylim(top=30 * max(filter(isfinite, drawn)))  # room for the legend
    axes.legend(fontsize=7, ncols=3, loc="upper left")
    return png(figure)


def latency(result: BenchmarkResult) -> bytes:
    """Plot the times of the backends, with one panel per task, and the stream curves if they were measured."""
    from matplotlib.figure import Figure

    timed: dict[str, list[Row]] = {}
    for row in result.rows:
        timed.setdefault(row.what, []).append(row)
    heights = [0.75 + 0.42 * len(rows) for rows in timed.values()] + ([3.2] if result.streams else [])
    figure = Figure(figsize=(8, sum(heights) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for place, (what, rows) in enumerate(timed.items()):
        _bars(plain(figure.add_subplot(grid[place, :])), what, rows, legend=place == 0)
    if result.streams:
        rate, wait = (plain(figure.add_subplot(grid[-1, column])) for column in (0, 1))
        _stream_curve(rate, wait, result.streams)
    return png(figure)


def _bars(axes: Any, what: str, rows: Sequence[Row], *, legend: bool) -> None:
    for place, row in enumerate(rows):
        low, high = row.timing.median_ci_ms
        axes.barh(place, row.timing.median_ms, color=BLUE, height=0.6, alpha=0.8, label="median")
        axes.errorbar(
            row.timing.median_ms,
            place,
            xerr=[[max(0.0, row.timing.median_ms - low)], [max(0.0, high - row.timing.median_ms)]],
            color="black",
            capsize=3,
            label="confidence interval of the median",
        )
        axes.plot(row.timing.p99_ms, place, "|", color=RED, ms=13, mew=2, ls="", label="p99")
        end = max(row.timing.p99_ms, high)
        axes.annotate(
            f"median {row.timing.median_ms:.2f} ms, {row.speedup:.2f}×",
            (end, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(rows)), [row.backend for row in rows])
    axes.set_xlim(0, 1.4 * max(max(row.timing.p99_ms, row.timing.median_ci_ms[1]) for row in rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    steps = rows[0].steps_per_call
    axes.set_title(what if steps == 1 else f"{what}, {steps} steps per call", fontsize=10, loc="left")
    axes.set_xlabel("ms per call", fontsize=8)
    axes.tick_params(labelsize=8)
    if legend:
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        names = ("median", "confidence interval of the median", "p99")
        axes.figure.legend(
            [handles[name] for name in names], names, loc="outside upper right", ncols=3, fontsize=8, frameon=False
        )


def _stream_curve(rate: Any, wait: Any, streams: StreamCurves) -> None:
    """Plot the total frame rate of all streams, and the time of a round, against the number of streams."""
    for curve, color in zip(streams.curves, cycle(COLORS), strict=False):
        counts = [point.streams for point in curve.points]
        rate.plot(counts, [point.frames_per_second for point in curve.points], "o-", ms=4, color=color)
        for waits, style in (([one.p50_ms for one in curve.points], "-"), ([one.p99_ms for one in curve.points], "--")):
            wait.plot(counts, waits, f"o{style}", ms=3, color=color)
        rate.lines[-1].set_label(curve.backend)
    wait.plot([], [], "-", color=GRAY, label="p50")
    wait.plot([], [], "--", color=GRAY, label="p99")
    if streams.target_p99_ms is not None:
        label = f"latency goal {streams.target_p99_ms:g} ms"
        wait.axhline(streams.target_p99_ms, color=RED, lw=1, ls=":", label=label)
    rate.set_title("total frame rate of all streams", fontsize=10, loc="left")
    rate.set_ylabel("frames/s", fontsize=8)
    wait.set_title("time of a round", fontsize=10, loc="left")
    wait.set_ylabel("ms per round", fontsize=8)
    for axes in (rate, wait):
        axes.set_xlabel("streams", fontsize=8)
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7, ncols=3, loc="upper left")
