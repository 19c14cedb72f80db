"""`e3d pack`: packs a bundle into an archive, or bundles into a model repository for Triton."""

from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import PATH, Count, Finite, is_given, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command, working
from e3d_deploy.commands._triton import flag_of, pack_repository, remark_on_engines

GROUPS = {
    "Output": ("output", "triton", "engines", "overwrite"),
    "Triton": ("flavours", "name", "max_streams", "max_batch", "idle_s", "backend", "threads", "device"),
}
EXAMPLES = (
    "e3d pack small.e3d -o small.e3d.zip",
    "e3d pack small.e3d --triton models --flavour python --flavour onnxruntime",
)
FLAVOURS = ("python", "onnxruntime", "tensorrt")
MAX_STREAMS = 4096


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@option("-o", "--output", type=PATH, metavar="NAME.e3d.zip", help="Archive to write.")
@option("--triton", type=PATH, metavar="DIR", help="Model repository for NVIDIA Triton Inference Server to write.")
@option(
    "--with-engines/--without-engines",
    "engines",
    default=False,
    help="Include the TensorRT engines, which run only on the GPUs they were built for.",
)
@overwrite_option("archive or repository")
@option(
    "--flavour",
    "flavours",
    type=click.Choice(FLAVOURS),
    multiple=True,
    default=["python"],
    help="Backend of Triton that serves a model; repeatable, and each gives a model of its own.",
)
@option("--name", metavar="NAME", help="Name of the model.", show_default="the name of the bundle")
@option("--max-streams", type=Count(MAX_STREAMS), default=32, help="Maximum number of streams of a model.")
@option("--max-batch", type=Count(MAX_STREAMS), default=8, help="Maximum number of streams that one call steps.")
@option(
    "--idle",
    "idle_s",
    type=Finite(min=0.001, max=1e6),
    default=60.0,
    metavar="S",
    help="Time after which the server ends a stream without requests (seconds).",
)
@option(
    "--backend",
    default="auto",
    metavar="NAME",
    help="Backend of the flavour python, as in `e3d serve`; auto chooses when the server starts.",
)
@option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of a step on the server.",
    show_default="chosen by the library",
)
@option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    help="Device class of the server; gpu starts one instance of a model on each GPU.",
    show_default="gpu for tensorrt and for a backend on the GPU, otherwise cpu",
)
def pack(bundles: tuple[Path, ...], output: Path | None, triton: Path | None, **options: Any) -> None:
    """Pack a bundle into an archive, or bundles for Triton.

    With -o, the same bundle always gives the same bytes. With --triton, each bundle becomes a model that Triton serves.
    """
    if output is not None and triton is not None:
        raise click.UsageError("-o and --triton write two different outputs; run the command once for each")
    if triton is not None:
        pack_repository(bundles, triton, **options)
        return
    if output is None:
        raise click.UsageError("no output is given; give -o NAME.e3d.zip for an archive, or --triton DIR for Triton")
    if unused := [name for name in GROUPS["Triton"] if is_given(name)]:
        raise click.UsageError(f"{flag_of(unused[0])} requires --triton DIR; give it, or leave the option out")
    if len(bundles) > 1:
        raise click.UsageError(f"an archive holds one bundle, got {len(bundles)}; run the command once for each")
    pack_archive(bundles[0], output, options["engines"], options["overwrite"])


def pack_archive(bundle: Path, output: Path, engines: bool, overwrite: bool) -> None:
    """Write the archive of a bundle, and print its path."""
    from e3d_deploy.bundle.pack import pack as pack_bundle
    from e3d_deploy.files import sha256

    with working(f"packing {bundle}") as progress:
        opened = open_bundle(bundle)
        pack_bundle(opened, output, engines=engines, overwrite=overwrite, progress=progress)
    click.echo(output)
    click.echo(f"{megabytes(output.stat().st_size)}, SHA-256 {sha256(output)}", err=True)
    remark_on_engines([opened], engines)
    next_command("unpack", output, "-o", f"{output.name.removesuffix('.zip').removesuffix('.e3d')}.e3d")
