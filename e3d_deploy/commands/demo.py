"""`e3d demo`: the whole path at once."""

from pathlib import Path

import click

from e3d_deploy.commands._benchmark_tables import benchmark_table
from e3d_deploy.commands._options import PATH
from e3d_deploy.commands._output import next_command, table, verdict, working


@click.command()
@click.option("-o", "--output", type=PATH, default=Path("demo-output"), help="Folder for the results.")
@click.option("--full", is_flag=True, help="Show the full-size model of a checkout; takes minutes, builds no engines.")
def demo(output: Path, full: bool) -> None:
    """The whole path on the trained models: export, build, verify, forecast, benchmark, report."""
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
        verdict(False, f"{names}: drifts from PyTorch beyond its budget", remedy="see the report")
    else:
        verdict(True, "the exported graphs compute what PyTorch computes")
    if result.live is not None:
        bundle, film = result.live
        next_command("serve", bundle, "--source", film)
