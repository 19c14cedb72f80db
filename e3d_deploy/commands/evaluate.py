"""`e3d evaluate`: compares forecasts with the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_predictor
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
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.data.datasets import check_read
    from e3d_deploy.data.rate import Selection

    check_streaming(streaming=streaming)
    if is_given("samples") and output is None:
        raise click.UsageError("--samples requires -o FOLDER; give both, or neither")
    check_read([data], layout=layout, skip_bad=skip_bad)
    check_apart(output, data, model, lpips_weights, holds_clips=True)
    selection = Selection(every=every, resample=resample)
    if streaming:
        from e3d_deploy.commands._aging import evaluate_streaming

        evaluate_streaming(
            model,
            data,
            split=split,
            selection=selection,
            layout=layout,
            context_length=context_length,
            horizon=horizon,
            backend=backend,
            threads=threads,
            most=most,
            ages=ages,
            renewals=renewals,
            record=record,
            output=output,
            skip_bad=skip_bad,
            json_=json_,
            importing=importing,
        )
        return
    from contextlib import ExitStack

    from e3d_deploy.data.datasets import evaluation_data, warn_of_data
    from e3d_deploy.data.form import Form
    from e3d_deploy.evaluation import evaluate as measure
    from e3d_deploy.evaluation.conventions import CONVENTIONS
    from e3d_deploy.evaluation.report import write_report
    from e3d_deploy.evaluation.samples import show_sample
    from e3d_deploy.files import new_folder

    if output is not None:
        import matplotlib.figure  # noqa: F401 (fail before the measurement if it is missing)
    conventions = [one for name, one in CONVENTIONS.items() if convention in ("both", name)]
    if lpips_weights is not None:
        from e3d_deploy.evaluation.lpips import lpips_convention

        conventions.append(lpips_convention(lpips_weights))
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads, importing))
        context_length = context_length or predictor.context_length
        horizon = horizon or predictor.horizon
        progress = stack.enter_context(working(f"evaluating {model} on {data}"))
        clips = evaluation_data(
            data,
            Form.of(predictor.config, predictor.card, layout),
            split=split,
            length=context_length + horizon,
            most=most or (100 if data == "moving-mnist" else None),
            skip_bad=skip_bad,
            selection=selection,
            progress=progress,
        )
        warn_of_data(clips, predictor.card.window, selection)

        def each(number: int, clip: Any, forecast: Any) -> None:
            progress(f"clip {number} of {len(clips)}")
            if folder is not None and number <= samples:
                show_sample(folder, str(number), clip, forecast, context_length)

        found = measure(
            predictor,
            (clips[index].numpy() for index in range(len(clips))),
            context_length=context_length,
            horizon=horizon,
            conventions=conventions,
            each=each,
        )
        about = {"model": str(model), "identity": predictor.identity, "data": data, "split": split}
        if folder is not None:
            write_report(folder, found, about)
    if json_:
        as_json({**about, **found.to_dict()})
    else:
        show_evaluation(found)
    if output is not None:
        click.echo(output, err=json_)
    click.echo(
        f"{found.clips} clips of {data} ({split}), {context_length} context frames, {horizon} predicted frames, "
        f"backend {found.backend}",
        err=True,
    )


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
