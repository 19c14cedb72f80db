"""`e3d pack`: packs a bundle into an archive."""

from pathlib import Path

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command, working


@click.command(
    cls=GroupedCommand,
    examples=("e3d pack small.e3d -o small.e3d.zip", "e3d pack small.e3d -o small.e3d.zip --with-engines"),
)
@BUNDLE
@option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d.zip", help="Archive to write.")
@option(
    "--with-engines/--without-engines",
    "engines",
    default=False,
    help="Include the TensorRT engines, which run only on the GPUs they were built for.",
)
@overwrite_option("file")
def pack(bundle: Path, output: Path, engines: bool, overwrite: bool) -> None:
    """Pack a bundle into one archive.

    The same bundle always gives the same bytes.
    """
    from e3d_deploy.bundle.pack import pack as pack_bundle
    from e3d_deploy.files import sha256

    with working(f"packing {bundle}") as progress:
        opened = open_bundle(bundle)
        pack_bundle(opened, output, engines=engines, overwrite=overwrite, progress=progress)
    click.echo(output)
    click.echo(f"{megabytes(output.stat().st_size)}, SHA-256 {sha256(output)}", err=True)
    if opened.manifest.engines and not engines:
        left = ", ".join(opened.manifest.engines)
        click.echo(f"omitted: the engines {left}; run `e3d build` on the device to build them", err=True)
    elif engines and not opened.manifest.engines:
        click.echo(f"--with-engines: {bundle} has no engines; run `e3d build` to build them", err=True)
    next_command("unpack", output, "-o", f"{output.name.removesuffix('.zip').removesuffix('.e3d')}.e3d")
