"""Tables of `e3d stream`: the live table and the summary."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import click

from e3d_deploy.commands._output import is_coloured, now_and_then, table
from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.progress import is_animated

if TYPE_CHECKING:
    from rich.console import RenderableType

    from e3d_deploy.live.statistics import Percentiles, Statistics
    from e3d_deploy.live.summary import SourceSummary, Summary
    from e3d_deploy.live.worker import SourceWorker

SILENT_S = 2.0
"""Time without a picture after which a source is shown as silent (s)."""
COLUMNS = ("source", "status", "frames", "frames/s", "p50", "p99", "dropped", "age", "MSE/copying", "novelty")
LEAST_IMPORTANT = ("age", "p50", "frames", "novelty", "dropped", "p99", "frames/s")
"""Columns that a narrow terminal omits, in this order."""
MIN_SOURCE = 20
"""Minimum width of the name of a source (terminal cells)."""
SUMMARY_COLUMNS = (
    "source",
    "frames",
    "frames/s",
    "latency p50",
    "latency p99",
    "model p50",
    "dropped",
    "MSE",
    "MSE of copying",
)


@contextmanager
def showing(workers: "Sequence[SourceWorker]") -> Iterator[Callable[[], None]]:
    """Yield a function that shows the progress of the workers on stderr.

    A terminal gets a live table. Other outputs get a line at most once per `INTERVAL_S`.
    """
    text = f"streaming {workers[0].label if len(workers) == 1 else f'{len(workers)} sources'}"
    if not is_animated(sys.stderr):
        click.echo(text, err=True)
        say = now_and_then(text)
        yield lambda: say(_line(workers))
        return
    with randomness_kept():
        from rich.console import Console
        from rich.live import Live

    console = Console(stderr=True, force_terminal=True, no_color=not is_coloured(sys.stderr))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_live_table(workers, console.width), refresh=True)


def _line(workers: "Sequence[SourceWorker]") -> str:
    statistics = [worker.statistics.current() for worker in workers]
    frames = sum(one.frames for one in statistics)
    rate = sum(one.frames_per_second or 0.0 for one in statistics)
    dropped = sum(worker.feed.dropped for worker in workers)
    return f"frame {frames}, {rate:.1f} frames/s, {dropped} dropped"


def _live_table(workers: "Sequence[SourceWorker]", width: int) -> "RenderableType":
    """Return the live table; on a narrow terminal, omit the least important columns."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    statistics = [worker.statistics.current() for worker in workers]
    cells = list(zip(*map(_live_row, workers, statistics), strict=True))
    columns = {name: list(column) for name, column in zip(COLUMNS, cells, strict=True)}
    for name in (*LEAST_IMPORTANT, None):
        widths = [max(map(cell_len, (title, *column))) for title, column in columns.items()]
        room = width - sum(widths[1:]) - len(widths)
        if room >= MIN_SOURCE or name is None:
            break
        del columns[name]
    columns["source"] = [_ending(label, max(room, MIN_SOURCE)) for label in columns["source"]]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in columns:
        shown.add_column(title, justify="left" if title in ("source", "status") else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*map(Text, row))
    pairs = zip(workers, statistics, strict=True)
    return Group(shown, *(Text(f"{one.label}: {found.verdict}") for one, found in pairs if found.verdict is not None))


def _live_row(worker: "SourceWorker", statistics: "Statistics") -> tuple[str, ...]:
    return (
        worker.label,
        _status(worker, statistics),
        str(statistics.frames),
        _number(statistics.frames_per_second, ".1f"),
        _ms(statistics.latency_ms, "p50"),
        _ms(statistics.latency_ms, "p99"),
        str(worker.feed.dropped),
        _number(statistics.age, "d"),
        "–" if (recent := statistics.recent) is None else f"{recent.mse:.1f}/{recent.copy_mse:.1f}",
        _number(statistics.novelty, ".2f"),
    )


def _ending(text: str, cells: int) -> str:
    """Cut a text that is too wide for `cells` at its start, because names of sources differ at the end."""
    from rich.cells import cell_len

    if cell_len(text) <= cells:
        return text
    while cell_len(text) >= cells:
        text = text[1:]
    return f"…{text}"


def _status(worker: "SourceWorker", statistics: "Statistics") -> str:
    """Return the status of a worker: waiting, running, silent, ended or lost."""
    if worker.has_ended:
        return "ended" if worker.error is None else "lost"
    if statistics.silent_s is None:
        return "waiting"
    return f"silent {statistics.silent_s:.0f} s" if statistics.silent_s > SILENT_S else "running"


def show_summary(summary: "Summary", *, err: bool) -> None:
    """Print the summary as a table, with remarks and verdicts below."""
    click.echo(f"{summary.backend}, renewal {summary.renewal}, {counted(summary.horizon)} ahead", err=err)
    table(SUMMARY_COLUMNS, [_row(one) for one in summary.sources], err=err)
    rates = {one.source_frames_per_second for one in summary.sources if one.source_frames_per_second is not None}
    total = _number(summary.frames_per_second, ".1f")
    source_rate = f"; the source runs at {rates.pop():.1f}" if len(rates) == len(summary.sources) == 1 else ""
    click.echo(f"{counted(summary.frames)}, {total} frames/s{source_rate}", err=err)
    for one in summary.sources:
        if one.verdict is not None:
            click.echo(f"{one.source}: {one.verdict}", err=err)
        if one.not_pushed:
            click.echo(f"{one.source}: {one.not_pushed} of {one.not_pushed + (one.pushed or 0)} pictures "
                       "were not pushed, because the peer did not accept them in time", err=err)  # fmt: skip


def counted(frames: int) -> str:
    """Format a number of frames: `1 frame`, `2 frames`."""
    return "1 frame" if frames == 1 else f"{frames} frames"


def _row(one: "SourceSummary") -> tuple[object, ...]:
    return (
        one.source,
        one.frames,
        _number(one.frames_per_second, ".1f"),
        _ms(one.latency_ms, "p50"),
        _ms(one.latency_ms, "p99"),
        _ms(one.model_ms, "p50"),
        one.dropped,
        _number(one.mse, ".1f"),
        _number(one.copy_mse, ".1f"),
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _ms(times: "Percentiles | None", name: Literal["p50", "p99"]) -> str:
    return _number(None if times is None else times.p50 if name == "p50" else times.p99, ".1f", " ms")
