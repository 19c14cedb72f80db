"""`e3d profile`: times the nodes of a step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, MAX_FRAMES, PROFILED, THREADS, Count, json_option
from e3d_deploy.commands._output import as_json, table, working

if TYPE_CHECKING:
    from e3d_deploy.measure.profile import NodeShare, ProfileResult


@click.command(
    cls=GroupedCommand,
    examples=("e3d profile small.e3d --threads 1", "e3d profile small.e3d --backend openvino --top 20"),
)
@BUNDLE
@PROFILED
@THREADS
@option("--steps", type=Count(MAX_FRAMES), default=20, help="Number of timed steps, with a full history.")
@option("--top", type=click.IntRange(min=1), default=10, help="Maximum number of rows in each table.")
@option("--roofline/--no-roofline", default=True, help="Compare with the measured peak of this machine.")
@json_option("Print all nodes and types and the environment as JSON.")
def profile(bundle: Path, backend: str, threads: int | None, steps: int, top: int, roofline: bool, json_: bool) -> None:
    """Time the nodes of a step and compare them with the roofline.

    The roofline is the peak speed of this machine, measured in matrix products and copies.
    """
    from e3d_deploy.measure.profile import profile as run

    opened = open_bundle(bundle)
    with working(f"profiling {bundle} on {backend}"):
        result = run(opened, backend, threads=threads, steps=steps, roofline=roofline)
    if json_:
        as_json(result.to_json())
        return
    show("type", [(part.kind, part) for part in result.types], top)
    show("node", [(part.name or "", part) for part in result.nodes], top)
    remarks(result)


def show(title: str, rows: Sequence[tuple[str, "NodeShare"]], top: int) -> None:
    """Print the slowest nodes or types, and the sum of the remaining ones."""
    shown = [
        (
            _short(name),
            f"{row.calls:g}",
            f"{row.ms:.3f}",
            f"{row.share:.1%}",
            "–" if row.gflops is None else f"{row.gflops:.1f}",
            "–" if row.roofline_share is None else f"{row.roofline_share:.0%}",
        )
        for name, row in rows[:top]
    ]
    if rest := rows[top:]:
        calls, ms, share = (
            sum(numbers) for numbers in zip(*((row.calls, row.ms, row.share) for _, row in rest), strict=True)
        )
        shown.append((f"{len(rest)} more", f"{calls:g}", f"{ms:.3f}", f"{share:.1%}", "", ""))
    table([title, "calls", "ms per step", "share", "GFLOP/s", "of roofline"], shown)
    click.echo()


def remarks(result: "ProfileResult") -> None:
    """Print the time spent outside nodes, and the limits of this machine."""
    between = result.step_ms - result.nodes_ms
    click.echo(
        f"a profiled step takes {result.step_ms:.2f} ms: {result.nodes_ms:.2f} ms inside nodes and "
        f"{between:.2f} ms between them and in Python"
    )
    limits = result.roofline
    if limits is None:
        click.echo(f"the column `of roofline` is empty: {result.roofline_missing}", err=True)
        return
    click.echo(
        f"peak of this machine: {limits.matmul_gflops:.1f} GFLOP/s (matrix product) and "
        f"{limits.copy_gb_per_s:.1f} GB/s (copy)"
    )
    click.echo(
        f"a step of {limits.flop / 1e9:.2f} GFLOP needs at least {limits.least_ms:.2f} ms, "
        f"{limits.share:.0%} of the measured time"
    )


def _short(name: str, most: int = 90) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
