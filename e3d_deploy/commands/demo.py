"""`e3d demo`: runs the whole workflow on trained models."""

from pathlib import Path

import click

from e3d_deploy.commands._benchmark_tables import benchmark_table
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import PATH
from e3d_deploy.commands._output import next_command, table, verdict, working


@click.command(cls=GroupedCommand, examples=("e3d demo", "e3d demo --full -o demo-full"))
@option("-o", "--output", type=PATH, default=Path("demo-output"), help="Folder for the results.")
@option(
    "--full",
    is_flag=True,
    help="Use the full-size model of the git repository instead of the small models of the package. Takes minutes and "
    "builds no engines.",
)
def demo(output: Path, full: bool) -> None:
    """Run the whole workflow on trained models.

    Exports, builds engines, verifies, forecasts and benchmarks, and writes a report.
    """
    from e3d_deploy.demo.exhibits import FULL
    from e3d_deploy.demo.tour import SHIPPED, tour

    with working("demo") as progress:
        result = tour(output, (FULL,) if full else SHIPPED, progress=progress)
    table(
        ["stage", "result", "seconds"],
        [(stage.name, stage.result, f"{stage.seconds:.1f}") for stage in result.stages],
        left=2,
    )
    benchmark_table(result.benchmark)
    click.echo(result.report)
    for gif in result.gifs:
        click.echo(gif)
    if result.drifting:
        names = ", ".join(result.drifting)
        verdict(False, f"{names}: differs from PyTorch by more than its budget", remedy="see the report")
    else:
        verdict(True, "the exported graphs compute what PyTorch computes")
    if result.live is not None:
        bundle, film = result.live
        next_command("serve", bundle, "--source", film)
