"""`e3d benchmark`: how long a step takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands.opening import open_bundle
from e3d_deploy.commands.options import BUNDLE, PATH, THREADS, json_option
from e3d_deploy.commands.output import as_json, check_picture, table, working


@click.command()
@BUNDLE
@click.option("--backends", default="torch,onnxruntime", help="Names; the first is compared with.")
@THREADS
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Length of a block; each backend runs five and the warm-up.",
)
@click.option("--picture", type=PATH, help="Draw the latencies into this PNG.")
@json_option("Everything, with the environment, as JSON.")
def benchmark(
    bundle: Path, backends: str, threads: int | None, seconds: float, picture: Path | None, json_: bool
) -> None:
    """Time the step of several backends in turn, and say how right each is."""
    from contextlib import ExitStack, closing

    from e3d_deploy.runtime.backend import open_backend
    from e3d_deploy.runtime.benchmark import benchmark as run

    check_picture(picture)
    opened = open_bundle(bundle)
    with ExitStack() as stack, working(f"benchmarking {bundle}") as progress:
        candidates = [
            stack.enter_context(closing(open_backend(opened, name.strip(), threads=threads)))
            for name in backends.split(",")
        ]
        result = run(opened, candidates, threads=threads, seconds=seconds, progress=progress)
    if picture is not None:
        from e3d_deploy import plots

        picture.write_bytes(plots.latency(result))
    if json_:
        as_json(result)
        return
    benchmark_table(result)


def benchmark_table(result: Mapping[str, Any]) -> None:
    """The rows of a benchmark."""
    table(
        ["backend", "median", f"{result['confidence']:.0%} CI", "p90", "p99", "frames/s", "speed-up", "max |Δ|"],
        [
            (
                row["backend"],
                f"{row['median_ms']:.2f} ms",
                f"{row['median_ci_ms'][0]:.2f}–{row['median_ci_ms'][1]:.2f}",
                f"{row['p90_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['frames_per_second']:.1f}",
                f"{row['speedup']:.2f}×",
                f"{row['max_abs_difference']:.1e}",
            )
            for row in result["results"]
        ],
    )
    environment = result["environment"]
    threads = environment["threads"] or "as many as the library likes"
    click.echo(
        f"one step on {environment['cpu']}, {environment['cores']} cores, threads: {threads}; "
        f"speed-up over {result['compared_with']}",
        err=True,
    )
