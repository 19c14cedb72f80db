"""`e3d data`: shows the data that a model would be trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from e3d_deploy.commands._help import ExampleGroup, GroupedCommand, option
from e3d_deploy.commands._options import LAYOUT, MAX_FRAMES, PATH, SKIP_BAD, Count, json_option, numbers
from e3d_deploy.commands._output import as_json, next_command, table, working
from e3d_deploy.config import Fit
from e3d_deploy.libraries import is_importable
from e3d_deploy.progress import duration

if TYPE_CHECKING:
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.inspect import DataContents


EXAMPLES = (
    "e3d data inspect clips/ --picture sheet.png",
    "e3d data inspect clips.npz --image-size 48x64 --channels 3 --layout NTHWC",
)
GROUPS = {
    "Frames": ("image_size", "channels", "fit", "length"),
    "Reading": ("split", "layout", "skip_bad"),
    "Output": ("picture", "json_"),
}


@click.group(cls=ExampleGroup, examples=EXAMPLES)
def data() -> None:
    """Inspect data before training."""


@data.command("inspect", cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@click.argument("source_", metavar="SOURCE")
@option("--image-size", default="64x64", callback=numbers, metavar="HxW", help="Frame height x width (pixels).")
@option("--channels", type=Count(1024), default=1, help="Channels of a frame: 1 gray, 3 RGB.")
@option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    default="stretch",
    help="Way to fit pictures of a different aspect ratio.",
)
@option("--length", type=Count(MAX_FRAMES), default=20, help="Context and horizon of a training clip (frames).")
@option("--split", type=click.Choice(["train", "valid", "test"]), default="train", help="Split to inspect.")
@option("--picture", type=PATH, help="PNG file for a contact sheet of the split.")
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
    """Show the kind, splits, frames and clip lengths of SOURCE.

    SOURCE is a file or folder of arrays, videos or pictures. The last line suggests a command that trains on it.
    """
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.inspect import SplitError
    from e3d_deploy.workflows.data import inspect_data as run

    height_width = cast("tuple[int, int]", image_size)  # the form checks that there are two
    form = Form(image_size=height_width, channels=channels, fit=fit, layout=layout)
    with working(f"reading {source_}") as progress:
        found = run(source_, form, split=split, length=length, skip_bad=skip_bad, picture=picture, progress=progress)
    if json_:
        as_json(found.to_json())
    else:
        show_data(found)
    if picture is not None:
        click.echo(picture, err=json_)
    train = found.splits["train"]
    if isinstance(train, SplitError):
        click.echo("training is not possible: the train split has the error above; repair its data first", err=True)
        return
    if isinstance(found.splits["valid"], SplitError):
        click.echo(
            "training is not possible: the valid split has the error above; repair its data, or give --valid-data to "
            "`e3d train`",
            err=True,
        )
        return
    spare = max(0.0, train.lengths.median - length)
    suggest_training(source_, form, length=length, spare=spare, skip_bad=skip_bad, timed=not json_)


def suggest_training(source: str, form: "Form", *, length: int, spare: float, skip_bad: bool, timed: bool) -> None:
    """Print a command that trains on a source within hours on this machine, and its estimated duration.

    Args:
        source: file or folder, as the user gave it.
        form: size, channels, fit and layout of the frames.
        length: context and horizon together (frames).
        spare: frames of the median clip in addition to `length`.
        skip_bad: suggest --skip-bad.
        timed: choose the preset by timing a training step (takes seconds); otherwise suggest the smallest preset.
    """
    from e3d_deploy.training.sizes import fitting_patch, size_arguments

    if fitting_patch(form.image_size, at_most=1) is None:
        click.echo("no patch size suits frames of this size, because their sides have no suitable common divisor; try "
                   "another size, such as --image-size 64x64", err=True)  # fmt: skip
        return
    context_length, horizon = length - length // 2, length // 2
    # The options are omitted for 20 frames, the default, and for 1 frame, which cannot be split in two.
    window = () if length in (1, 20) else ("--context", context_length, "--horizon", horizon)
    sizes = size_arguments("tiny", form.image_size)
    if horizon and timed and is_importable("torch"):
        from e3d_deploy.training.estimate import suggested_run

        lengths = {"context_length": context_length, "horizon": horizon}
        with working("timing a training step"):
            run = suggested_run(image_size=form.image_size, channels=form.channels, spare=spare, **lengths)
        assert run is not None  # a patch fits
        sizes = run.arguments
        click.echo(
            f"preset {run.preset}: about {duration(run.duration_s)} on this machine including validation, for "
            f"{run.steps} steps of {run.step_s:.2g} s (just timed)",
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
    """Print the description of a source as tables."""
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
    columns = [
        "split",
        "clips",
        f"windows of {found.length}",
        "shortest clip",
        "median clip",
        "longest clip",
        "held out",
    ]
    table(
        [*columns, "skipped files", "short clips"],
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
