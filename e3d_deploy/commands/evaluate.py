"""`e3d evaluate`: forecasts measured against what came."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._open import open_predictor
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    CONTEXT,
    EVERY,
    HORIZON,
    LAYOUT,
    MOST_FRAMES,
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


@click.command()
@BUNDLE_OR_MODEL
@click.option(
    "--data",
    default="moving-mnist",
    metavar="SOURCE",
    help="moving-mnist, or a file or folder: the original's .npz, mnist_test_seq.npy, KTH, videos, pictures, clips.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    help="Part of the data, where it has parts.",
)
@CONTEXT
@HORIZON
@EVERY
@RESAMPLE
@LAYOUT
@BACKEND
@THREADS
@click.option("--most", type=Count(1_000_000), help="Clips to take; else all, or 100 where they are generated.")
@click.option(
    "--convention",
    type=click.Choice(["both", "openstl", "original"]),
    default="both",
    help="Whose way to measure; docs/metrics.md tells them apart.",
)
@click.option("-o", "--output", type=PATH, help="New folder for report, table, plots and samples.")
@click.option(
    "--samples", type=Count(MOST_FRAMES, least=0), default=4, help="Clips to write as pictures into the folder."
)
@click.option("--lpips", "lpips_weights", type=PATH, help="Weights of LPIPS, to measure it too; nothing is downloaded.")
@click.option("--streaming", is_flag=True, help="Measure by the age of a stream's state instead; docs/metrics.md.")
@click.option(
    "--ages", callback=counts(MOST_FRAMES), metavar="1,2,…", help="With --streaming: ages of the state (frames)."
)
@click.option(
    "--renewals",
    default="none,refresh:2,replay",
    callback=names,
    metavar="NAMES",
    show_default=True,
    help="With --streaming: renewals of a stream to compare; docs/streams.md.",
)
@click.option("--record", is_flag=True, help="With --streaming: keep the result in the model file or bundle.")
@SKIP_BAD
@click.option("--image-size", callback=numbers, help="Of a checkpoint of others, as for `e3d import`.")
@click.option("--patch-size", type=Count(1024), help="The same.")
@click.option("--channels", type=Count(1024), help="The same.")
@click.option("--history-length", type=Count(MOST_FRAMES), help="The same.")
@json_option("Everything as JSON.")
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
    """Measure forecasts against what came, beside two baselines.

    A checkpoint of google/e3d_lstm or OpenSTL is imported on the way.
    """
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.data.datasets import check_read
    from e3d_deploy.data.rate import Selection

    check_streaming(streaming=streaming)
    if is_given("samples") and output is None:
        raise click.UsageError("--samples is of -o FOLDER: give both, or neither.")
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
        import matplotlib.figure  # noqa: F401 (a missing library shall show now)
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
        f"{found.clips} clips of {data} ({split}), {context_length} frames given, {horizon} predicted, "
        f"by {found.backend}",
        err=True,
    )


def check_streaming(*, streaming: bool) -> None:
    """Refuse options that mean nothing with or without --streaming."""
    ctx = click.get_current_context()
    useless = ("convention", "samples", "lpips_weights") if streaming else ("ages", "renewals", "record")
    if given := [name for name in useless if is_given(name)]:
        option = next(one.opts[0] for one in ctx.command.params if one.name == given[0])
        raise click.UsageError(f"{option} means nothing {'with' if streaming else 'without'} --streaming; leave it out")


def show_evaluation(found: "Evaluation") -> None:
    """An evaluation as tables, each below the sentence that says what its numbers are."""
    from e3d_deploy.evaluation.report import number

    for one in found.conventions:
        click.echo(f"{one.name}: {one.meaning}")
        table(["", *one.measures], [(label, *map(number, values)) for label, values in found.rows(one)])
        click.echo()
