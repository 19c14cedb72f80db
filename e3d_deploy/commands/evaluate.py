"""`e3d evaluate`: compares forecasts with the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._aging import show_streaming, streaming_remarks
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    CONTEXT,
    EVERY,
    HORIZON,
    LAYOUT,
    MAX_FRAMES,
    PATH,
    RESAMPLE,
    SKIP_BAD,
    THREADS,
    Count,
    counts,
    is_given,
    json_option,
    names,
    numbers,
)
from e3d_deploy.commands._output import as_json, table, working

if TYPE_CHECKING:
    from e3d_deploy.data.splits import Split
    from e3d_deploy.evaluation import Evaluation


GROUPS = {
    "Data": ("data", "split", "most", "every", "resample", "layout", "skip_bad"),
    "Forecast": ("context_length", "horizon", "backend", "threads"),
    "Metrics": ("convention", "lpips_weights"),
    "Age of a stream's state": ("streaming", "ages", "renewals", "record"),
    "Output": ("output", "samples", "json_"),
    "Third-party checkpoint": ("image_size", "patch_size", "channels", "history_length"),
}
EXAMPLES = (
    "e3d evaluate small.e3d --data clips/ -o evaluation",
    "e3d evaluate runs/small/model.safetensors --streaming --record",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE_OR_MODEL
@option("--data", default="moving-mnist", metavar="SOURCE", help="moving-mnist, a file or a folder.")
@option(
    "--split",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    help="Split of the data, if it has splits.",
)
@CONTEXT
@HORIZON
@EVERY
@RESAMPLE
@LAYOUT
@BACKEND
@THREADS
@option(
    "--most",
    type=Count(1_000_000),
    help="Maximum number of clips.",
    show_default="all clips, or 100 of moving-mnist; with --streaming 100, or 32 of moving-mnist",
)
@option(
    "--convention",
    type=click.Choice(["both", "openstl", "original"]),
    default="both",
    help="Definition of the metrics: that of OpenSTL, of google/e3d_lstm, or both.",
)
@option("-o", "--output", type=PATH, help="New folder for report, table, plots and samples.")
@option(
    "--samples",
    type=Count(MAX_FRAMES, least=0),
    default=4,
    help="Number of clips to write as pictures; requires --output.",
)
@option("--lpips", "lpips_weights", type=PATH, help="File of LPIPS weights; also measures LPIPS.")
@option("--streaming", is_flag=True, help="Measure the error as a function of the age of a stream's state.")
@option(
    "--ages",
    callback=counts(MAX_FRAMES),
    metavar="N,N,…",
    help="Ages of the state to measure (frames); requires --streaming.",
    show_default="12 ages from 1 to 150, and 1 and 6 times the context",
)
@option(
    "--renewals",
    default="none,refresh:2,replay",
    callback=names,
    metavar="RULES",
    show_default=True,
    help="Renewals of old states to compare; requires --streaming.",
)
@option("--record", is_flag=True, help="Save the measured decay in the model file or bundle; requires --streaming.")
@SKIP_BAD
@option("--image-size", callback=numbers, metavar="HxW", help="Frame height x width, as in `e3d import` (pixels).")
@option("--patch-size", type=Count(1024), help="Patch side, as in `e3d import` (pixels).")
@option("--channels", type=Count(1024), help="Channels of a frame, as in `e3d import`.")
@option("--history-length", type=Count(MAX_FRAMES), help="Number of past cell states, as in `e3d import`.")
@json_option()
def evaluate(
    model: Path,
    data: str,
    split: "Split",
    context_length: int | None,
    horizon: int | None,
    every: int | None,
    resample: float | None,
    layout: str | None,
    backend: str,
    threads: int | None,
    most: int | None,
    convention: str,
    output: Path | None,
    samples: int,
    lpips_weights: Path | None,
    streaming: bool,
    ages: tuple[int, ...] | None,
    renewals: tuple[str, ...],
    record: bool,
    skip_bad: bool,
    json_: bool,
    **importing: Any,
) -> None:
    """Compare forecasts with the truth and with two baselines.

    A checkpoint of google/e3d_lstm or OpenSTL is imported automatically.
    """

    check_streaming(streaming=streaming)
    if is_given("samples") and output is None:
        raise click.UsageError("--samples requires -o FOLDER; give both, or neither")
    common: dict[str, Any] = {
        "split": split,
        "context_length": context_length,
        "horizon": horizon,
        "every": every,
        "resample": resample,
        "layout": layout,
        "backend": backend,
        "threads": threads,
        "most": most,
        "output": output,
        "skip_bad": skip_bad,
        "importing": importing,
    }
    if streaming:
        evaluate_age(model, data, ages=ages, renewals=renewals, record=record, json_=json_, **common)
        return
    from e3d_deploy.workflows.evaluate import evaluate as run

    more: dict[str, Any] = {"convention": convention, "lpips_weights": lpips_weights, "samples": samples}
    with working(f"evaluating {model} on {data}") as progress:
        found = run(model, data, **more, **common, progress=progress)
    results = found.results
    if json_:
        as_json(found.to_json())
    else:
        show_evaluation(results)
    if output is not None:
        click.echo(output, err=json_)
    click.echo(
        f"{results.clips} clips of {data} ({split}), {results.context_length} context frames, {results.horizon} "
        f"predicted frames, backend {results.backend}",
        err=True,
    )


def evaluate_age(model: Path, data: str, *, json_: bool, output: Path | None, **options: Any) -> None:
    """Measure the forecast error as a function of the age of the state, and print the result."""
    from e3d_deploy.workflows.streaming import evaluate_streaming

    with working(f"measuring the decay of {model} on {data}") as progress:
        found = evaluate_streaming(model, data, output=output, progress=progress, **options)
    if json_:
        as_json(found.to_json())
    else:
        show_streaming(found)
    if output is not None:
        click.echo(output, err=json_)
    streaming_remarks(found, data)


def check_streaming(*, streaming: bool) -> None:
    """Refuse options that have no effect with or without --streaming."""
    ctx = click.get_current_context()
    useless = ("convention", "samples", "lpips_weights") if streaming else ("ages", "renewals", "record")
    if given := [name for name in useless if is_given(name)]:
        flag = next(one.opts[0] for one in ctx.command.params if one.name == given[0])
        raise click.UsageError(f"{flag} has no effect {'with' if streaming else 'without'} --streaming; leave it out")


def show_evaluation(found: "Evaluation") -> None:
    """Print a table for each convention, below a sentence that defines its metrics."""
    from e3d_deploy.evaluation.report import number

    for one in found.conventions:
        click.echo(f"{one.name}: {one.meaning}")
        table(["", *one.measures], [(label, *map(number, values)) for label, values in found.rows(one)])
        click.echo()
