"""Pictures of what was measured, with Matplotlib (extra `plot`), as PNG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.frames import Frames, to_pictures
from e3d_deploy.runtime.verify import Report

GRAY, BLUE, RED = "#666666", "#1f5fa8", "#b03030"


def drift(report: Report) -> bytes:
    """Difference from PyTorch at each step of the rollout, on a logarithmic axis, with the budget."""
    figure, axes = _figure(7, 3.6)
    lines = {kind: [step[kind] for step in report.states] for kind in ("hidden", "cell", "memory") if report.states}
    for name, values in {"predictions": report.predictions, **lines}.items():
        # An exact step has no place on a logarithmic axis; it stands at the bottom.
        shown = [max(value, 1e-9) for value in values]
        thick = {"marker": "o", "ms": 3} if name == "predictions" else {"lw": 0.8}
        axes.plot(range(1, len(shown) + 1), shown, label=f"{report.backend}: {name}", **thick)
    if isfinite(report.budget):
        axes.axhline(report.budget, color="black", lw=1.2, ls="--", label="budget")
    axes.axvline(report.context_length + 0.5, color=GRAY, lw=0.8, ls=":", label="own predictions from here")
    axes.set(yscale="log", xlabel="step", ylabel="largest |difference| from PyTorch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(report.predictions) > report.steps:
        axes.axvline(report.steps + 0.5, color=GRAY, lw=0.8, ls="--", label="judged up to here")
    drawn = [report.budget, *report.predictions, *(value for values in lines.values() for value in values), 1e-9]
    axes.set_ylim(top=30 * max(filter(isfinite, drawn)))  # room for the legend
    axes.legend(fontsize=7, ncols=3, loc="upper left")
    return _png(figure)


def latency(result: Mapping[str, Any]) -> bytes:
    """Median time of a step per backend, with the range of the medians and p99."""
    rows = result["results"]
    figure, axes = _figure(7, 0.9 + 0.5 * len(rows))
    for place, row in enumerate(rows):
        axes.barh(place, row["median_ms"], color=BLUE, height=0.55)
        axes.plot(row["median_ci_ms"], [place, place], color="black", lw=2)
        axes.plot(row["p99_ms"], place, "|", color=RED, ms=14, label="p99" if place == 0 else None)
        axes.annotate(
            f" {row['median_ms']:.2f} ms, {row['speedup']:.2f}×", (row["p99_ms"], place), va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [row["backend"] for row in rows])
    axes.set_xlim(0, 1.35 * max(row["p99_ms"] for row in rows))
    axes.invert_yaxis()
    axes.set_xlabel("ms per step (bar: median, black: range of medians, red: p99)")
    return _png(figure)


def curves(series: Mapping[str, Sequence[float]], *, x: Sequence[float], xlabel: str, ylabel: str) -> bytes:
    """Lines over a common axis, each with its name."""
    figure, axes = _figure(7, 3.2)
    for name, values in series.items():
        axes.plot(x, values, marker="o", ms=3, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _png(figure)


def horizons(measures: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """How each measure changes with the predicted frame, a panel each.

    Args:
        measures: measure -> the forecast and two baselines -> one number per predicted frame.
    """
    from matplotlib.figure import Figure

    columns = ceil(sqrt(len(measures)))
    height = ceil(len(measures) / columns)
    figure = Figure(figsize=(max(3.4 * columns, 5), 2.6 * height + 0.4), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).flat
    styles = [{"color": BLUE, "marker": "o", "ms": 3}, {"color": RED, "lw": 1, "ls": "--"}, {"color": GRAY, "lw": 1}]
    for (measure, lines), panel in zip(measures.items(), panels, strict=False):
        for (who, values), style in zip(lines.items(), styles, strict=True):
            panel.plot(range(1, len(values) + 1), values, label=who, **style)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        drawn = np.isfinite(list(lines.values())).all()
        panel.set_title(measure if drawn else f"{measure} (infinite is not drawn)", fontsize=10)
        panel.set_xlabel("predicted frame", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        panel.axis("off")
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper center", ncols=len(names[1]), fontsize=8, frameon=False)
    return _png(figure)


def strips(rows: Mapping[str, Frames], *, every: int = 1) -> bytes:
    """Clips [T, C, H, W] one above the other, frame by frame, each with its name."""
    clips = {name: to_pictures(frames[::every]) for name, frames in rows.items()}
    length = max(len(clip) for clip in clips.values())
    _, height, width, _ = next(iter(clips.values())).shape
    figure, _ = _figure(0.9 * length + 1, (0.9 * height / width + 0.1) * len(clips) + 0.2, axes=False)
    grid = figure.subplots(len(clips), length, squeeze=False)
    for line, (name, clip) in zip(grid, clips.items(), strict=True):
        for place, axes in enumerate(line):
            axes.set_xticks([])
            axes.set_yticks([])
            if place < len(clip):
                axes.imshow(_displayable(clip[place]), cmap="gray", vmin=0, vmax=255)
            else:
                axes.axis("off")
        line[0].set_ylabel(name, fontsize=9)
    figure.subplots_adjust(left=0.08, right=0.99, top=0.98, bottom=0.02, wspace=0.04, hspace=0.04)
    return _png(figure)


def _displayable(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if axes else None)
    if not axes:
        return figure, None
    plot = figure.subplots()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25)
    return figure, plot


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
