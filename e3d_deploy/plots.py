"""Plots of clips, curves and decay as PNG files, made with Matplotlib (extra `plot`)."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.card import Decay
from e3d_deploy.frames import Frames, to_pictures

GRAY, BLUE, RED = "#666666", "#1f5fa8", "#b03030"


def curves(series: Mapping[str, Sequence[float]], *, x: Sequence[float], xlabel: str, ylabel: str) -> bytes:
    """Plot several series of values over the same x axis."""
    figure, axes = new_figure(7, 3.2)
    for name, values in series.items():
        axes.plot(x, values, marker="o", ms=3, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return png(figure)


def decay(found: Decay) -> bytes:
    """Plot the forecast error against the age of the state, and the error of copying the last frame."""
    figure, axes = new_figure(7, 3.6)
    ages, C = list(found.mse), found.context_length
    axes.plot(ages, [found.mean(age) for age in ages], "o-", ms=4, color=BLUE, label="forecast")
    copying = sum(found.copy_last) / len(found.copy_last)
    axes.axhline(copying, color=RED, lw=1, ls="--", label="copy last")
    axes.axvline(C, color=GRAY, lw=0.8, ls=":", label=f"context length in training, {C}")
    axes.set_xscale("log")
    axes.set_xticks(ages, map(str, ages), fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="age of the state (frames seen)", ylabel="MSE per frame")
    axes.set_ylim(0, 1.25 * max(copying, *map(found.mean, ages)))  # room for the legend
    axes.set_title(
        f"{found.data}: {found.clips} clips, {len(found.copy_last)} frames predicted", fontsize=9, loc="left"
    )
    axes.legend(fontsize=8, ncols=3, loc="upper left")
    return png(figure)


def horizons(measures: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Plot each measure against the number of the predicted frame, with one panel per measure.

    Args:
        measures: for each measure, three series by name (the forecast and two baselines) with one number per
            predicted frame.
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
        panel.set_title(measure if drawn else f"{measure} (infinite values not drawn)", fontsize=10)
        panel.set_xlabel("predicted frame", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        panel.axis("off")
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper center", ncols=len(names[1]), fontsize=8, frameon=False)
    return png(figure)


def strips(rows: Mapping[str, Frames], *, every: int = 1) -> bytes:
    """Draw each clip [T, C, H, W] as a line of frames next to its name; NaN is drawn black.

    Args:
        every: draw only every n-th frame.
    """
    clips = {name: to_pictures(np.nan_to_num(frames[::every])) for name, frames in rows.items()}
    length = max(len(clip) for clip in clips.values())
    _, height, width, _ = next(iter(clips.values())).shape
    figure, _ = new_figure(0.9 * length + 1, (0.9 * height / width + 0.1) * len(clips) + 0.2, axes=False)
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
    return png(figure)


def _displayable(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def new_figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, Any]:
    """Return a figure of the given size (inches) and its axes; the axes are None if `axes` is False."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if axes else None)
    return figure, plain(figure.subplots()) if axes else None


def plain(axes: Any) -> Any:
    """Remove the top and right border of axes and add a grid; return the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def png(figure: Any) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
