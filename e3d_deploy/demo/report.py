"""Report of the tour: one HTML file that contains all pictures."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from e3d_deploy import checkpoint, plots
from e3d_deploy.demo.exhibits import HERE, HORIZON, Exhibit
from e3d_deploy.shipped import extracted

LIVE_PAGE = HERE / "live_page.mp4"
"""Recording of the live page, made by benchmarks/page_film.py."""
SHOWN = ("forecast", "copy last")
"""Columns of the quality tables."""


@dataclass(frozen=True)
class Stage:
    """Stage of the tour, with its time and result."""

    name: str
    seconds: float
    result: str


@dataclass(frozen=True)
class Section:
    """Section of the report: an exhibit and its pictures."""

    exhibit: Exhibit
    gif: Path
    pictures: dict[str, bytes]
    """PNG files by title."""


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, .words :last-child { text-align: left }
img, video { max-width: 100% }
h2 { margin-top: 3rem }
h3 { margin-top: 2.2rem; font-size: 1.1rem }
.PASS { color: #176b2c }
.FAIL { color: #b03030 }
"""


def write_report(
    path: Path, stages: Sequence[Stage], sections: Sequence[Section], environment: Mapping[str, Any], *, passed: bool
) -> Path:
    """Write the report; return its path.

    Args:
        environment: conditions of the benchmark: processor, cores, date and versions.
        passed: True if every bundle agrees with PyTorch within its budget.
    """
    verdict = "PASS" if passed else "FAIL"
    table = _table(
        ["stage", "seconds", "result"],
        [[stage.name, f"{stage.seconds:.1f}", stage.result] for stage in stages],
        kind="words",
    )
    live = _live() if any(section.exhibit.film for section in sections) else ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    path.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>e3d demo</title>
<style>{STYLE}</style>
<h1>e3d demo: <span class="{verdict}">{verdict}</span></h1>
<p>Measured on {escape(environment["cpu"])}, {environment["cores"]} cores, {escape(environment["date"])};
versions {escape(versions)}.</p>{live}{table}{"".join(map(_section, sections))}</html>
""",
        encoding="utf-8",
    )
    return path


def _section(section: Section) -> str:
    card = json.loads(section.exhibit.card.read_text())
    measures = card["quality"]["measures"]
    quality = _table(
        ["frame", *(f"{name} {who}" for name in measures for who in SHOWN)],
        [[str(t + 1), *(f"{measures[name][who][t]:.3g}" for name in measures for who in SHOWN)] for t in range(HORIZON)]
        + [["mean", *(f"{np.mean(measures[name][who]):.3g}" for name in measures for who in SHOWN)]],
    )
    images = "".join(
        f"<h3>{escape(title)}</h3><img src='{_data(content, 'png')}' alt='{escape(title)}'>"
        for title, content in {**section.pictures, **card_pictures(section.exhibit)}.items()
    )
    return f"""
<h2>{escape(section.exhibit.title)}</h2>
<h3>Top row: the truth. Bottom row: the context, followed by the forecast in a bright border</h3>
<img src="{_data(section.gif.read_bytes(), "gif")}" alt="forecast">{images}
<h3>Quality of the model</h3><p>On {card["quality"]["sequences"]} {escape(section.exhibit.tested_on)},
measured earlier by <code>{section.exhibit.measured_by}</code>, not in this run. MSE and MAE are summed over
the pixels of a frame.</p>{quality}"""


def _live() -> str:
    return f"""
<h3>The live page of <code>e3d serve</code>: the camera picture, the forecast and its error</h3>
<video src="{_data(LIVE_PAGE.read_bytes(), "mp4", of="video")}" controls muted loop autoplay playsinline></video>"""


def card_pictures(exhibit: Exhibit) -> dict[str, bytes]:
    """Plot the learning curve of a model, its error by predicted frame, and its error by age of the state."""
    card = json.loads(exhibit.card.read_text())
    learned, by_frame = card["curve"], card["quality"]["measures"]["mse"]
    with extracted(exhibit.model) as model:
        decay = checkpoint.read_card(model).decay
    return {
        "Learning curve": plots.curves(
            {"validation": learned["valid_mse"]}, x=learned["step"], xlabel="optimizer step", ylabel="MSE per frame"
        ),
        "Error by predicted frame": plots.curves(
            by_frame, x=range(1, HORIZON + 1), xlabel="predicted frame", ylabel="MSE per frame"
        ),
        **({} if decay is None else {f"Error by age of the state: {decay.verdict}": plots.decay(decay)}),
    }


def _table(columns: list[str], rows: list[list[str]], *, kind: str = "numbers") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='{kind}'><tr>{head}</tr>{body}</table>"


def _data(content: bytes, kind: str, *, of: str = "image") -> str:
    return f"data:{of}/{kind};base64,{b64encode(content).decode()}"
