"""`e3d profile`: where the time of a step goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, MOST_FRAMES, PROFILED, THREADS, Count, json_option
from e3d_deploy.commands._output import as_json, table, working

if TYPE_CHECKING:
    from e3d_deploy.measure.profile import Part, ProfileResult


@click.command()
@BUNDLE
@PROFILED
@THREADS
@click.option("--steps", type=Count(MOST_FRAMES), default=20, help="Steps to time, with a full history.")
@click.option("--top", type=click.IntRange(min=1), default=10, help="Rows of each table.")
@click.option("--roofline/--no-roofline", default=True, help="Measure what this machine can do at most.")
@json_option("All nodes and types, with the environment, as JSON.")
def profile(bundle: Path, backend: str, threads: int | None, steps: int, top: int, roofline: bool, json_: bool) -> None:
    """Time the nodes of a step, and say how near they come to what this machine can do."""
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


def show(title: str, rows: Sequence[tuple[str, "Part"]], top: int) -> None:
    """The longest rows, and what the others sum up to."""
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
    table([title, "calls", "ms a step", "share", "GFLOP/s", "of roofline"], shown)
    click.echo()


def remarks(result: "ProfileResult") -> None:
    """Print the time spent outside nodes, and the limits of this machine."""
    between = result.step_ms - result.nodes_ms
    click.echo(
        f"a step takes {result.step_ms:.2f} ms while it is profiled, {result.nodes_ms:.2f} ms of it "
        f"inside nodes, {between:.2f} ms between them and in Python"
    )
    limits = result.roofline
    if limits is None:
        click.echo(f"of roofline: left empty; {result.roofline_missing}", err=True)
        return
    click.echo(
        f"at most {limits.matmul_gflops:.1f} GFLOP/s (matrix product) and {limits.copy_gb_per_s:.1f} GB/s (copy) "
        f"here: {limits.flop / 1e9:.2f} GFLOP need {limits.least_ms:.2f} ms, {limits.share:.0%} of the step"
    )


def _short(name: str, most: int = 90) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
