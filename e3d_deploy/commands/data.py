"""`e3d data`: what a model would learn from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from e3d_deploy.commands._options import LAYOUT, MOST_FRAMES, PATH, SKIP_BAD, Count, json_option, numbers
from e3d_deploy.commands._output import as_json, check_picture, next_command, table, working
from e3d_deploy.config import Fit
from e3d_deploy.files import write_file
from e3d_deploy.libraries import is_importable
from e3d_deploy.progress import duration

if TYPE_CHECKING:
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.inspect import DataContents


@click.group()
def data() -> None:
    """Look at data before a model learns from it."""


@data.command("inspect")
@click.argument("source_", metavar="SOURCE")
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width that the model takes, pixels.")
@click.option("--channels", type=Count(1024), default=1, help="Colours of a frame.")
@click.option(
    "--fit", type=click.Choice(get_args(Fit)), default="stretch", help="How pictures of another shape become frames."
)
@click.option("--length", type=Count(MOST_FRAMES), default=20, help="Frames of a window, context and horizon.")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="train", help="Which one to look into.")
@click.option("--picture", type=PATH, help="Draw windows of the split into this PNG.")
@LAYOUT
@SKIP_BAD
@json_option()
def inspect_data(
    source_: str,
    image_size: tuple[int, ...],
    channels: int,
    fit: Fit,
    length: int,
    split: Any,
    picture: Path | None,
    layout: str | None,
    skip_bad: bool,
    json_: bool,
) -> None:
    """Show what SOURCE holds: its kind, its splits, and some of its frames."""
    from e3d_deploy.data import inspect as look
    from e3d_deploy.data.form import Form

    check_picture(picture, source_)
    height_width = cast("tuple[int, int]", image_size)  # the form checks that there are two
    form = Form(image_size=height_width, channels=channels, fit=fit, layout=layout)
    with working(f"reading {source_}") as progress:
        opened = look.open_splits(
            source_,
            form,
            split=split,
            length=length,
            skip_bad=skip_bad,
            progress=progress,
        )
        found = look.describe(opened, split, length=length)
        if picture is not None:
            write_file(picture, look.contact_sheet(opened, split, length=length))
    if json_:
        as_json(found.to_json())
    else:
        show_data(found)
    if picture is not None:
        click.echo(picture, err=json_)
    train = found.splits["train"]
    if isinstance(train, look.SplitError):
        click.echo("no training yet: mend the train split first", err=True)
        return
    if isinstance(found.splits["valid"], look.SplitError):
        click.echo("no training yet: mend the valid split first, or train with --valid and another source", err=True)
        return
    spare = max(0.0, train.lengths.median - length)
    suggest_training(source_, form, length=length, spare=spare, skip_bad=skip_bad, timed=not json_)


def suggest_training(source: str, form: "Form", *, length: int, spare: float, skip_bad: bool, timed: bool) -> None:
    """Print the command that trains on a source, sized so that it ends within hours on this machine, and its duration.

    Args:
        spare: frames that a clip has beyond a window.
        skip_bad: leave out what cannot be read, as here.
        timed: measure a step for it, which takes seconds; else the smallest preset is suggested.
    """
    from e3d_deploy.training.sizes import fitting_patch, size_arguments

    if fitting_patch(form.image_size, at_most=1) is None:
        click.echo("frames of this size cannot be cut into few enough patches; look again with --image-size 64x64,"
                   " or another whose sides have a common divisor", err=True)  # fmt: skip
        return
    context_length, horizon = length - length // 2, length // 2
    # A clip of one frame is no window to train on, and 20 frames are the default.
    window = () if length in (1, 20) else ("--context", context_length, "--horizon", horizon)
    sizes = size_arguments("tiny", form.image_size)
    if horizon and timed and is_importable("torch"):
        from e3d_deploy.training.estimate import suitable

        lengths = {"context_length": context_length, "horizon": horizon}
        with working("timing a training step"):
            plan = suitable(image_size=form.image_size, channels=form.channels, spare=spare, **lengths)
        assert plan is not None  # a patch fits
        sizes = plan.arguments
        click.echo(
            f"preset {plan.preset}: about {duration(plan.duration_s)} on this machine with validations, {plan.steps} "
            f"steps of {plan.step_s:.2g} s as timed now",
            err=True,
        )
    size = "x".join(map(str, form.image_size))
    words = ("--data", source, "--image-size", size, "--channels", form.channels, "-o", "runs/first")
    reading = [
        *(("--fit", form.fit) if form.fit != "stretch" else ()),
        *(("--layout", form.layout) if form.layout else ()),
        *(("--skip-bad",) if skip_bad else ()),
    ]
    next_command("train", *words, *sizes, *window, *reading)


def show_data(found: "DataContents") -> None:
    """Print the content of data as tables."""
    from e3d_deploy.data.inspect import SplitError

    frame, values = found.frame, found.values
    table(
        [found.source, ""],
        [
            ("kind", found.kind),
            ("frames", f"{frame.height}×{frame.width}×{frame.channels} {frame.dtype}"),
            *([("axes", ", ".join(found.layouts))] if found.layouts else []),
            ("frames/s", ", ".join(f"{rate:g}" for rate in found.frames_per_second) or "–"),
            (
                f"values in {values.windows} windows of {values.split}",
                f"{values.min:.3f} to {values.max:.3f}, mean {values.mean:.3f}",
            ),
        ],
    )
    click.echo()
    columns = ["split", "clips", f"windows of {found.length}", "frames: least", "median", "most", "held out"]
    table(
        [*columns, "skipped", "short"],
        [
            (
                name,
                one.clips,
                one.windows,
                *(f"{number:g}" for number in (one.lengths.min, one.lengths.median, one.lengths.max)),
                "yes" if one.held_out else "no",
                len(one.skipped),
                len(one.short),
            )
            for name, one in found.splits.items()
            if not isinstance(one, SplitError)
        ],
    )
    for name, one in found.splits.items():
        if isinstance(one, SplitError):
            click.echo(f"{name}: {one.error}")
            continue
        for what, texts in (("folder", one.folders), ("skipped", one.skipped), ("short", one.short)):
            for text in texts:
                click.echo(f"{name}, {what}: {text}")
    for text in found.remarks:
        click.echo(f"remark: {text}")
