"""`e3d pack`: a bundle as one archive."""

from pathlib import Path

import click

from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command, working


@click.command()
@BUNDLE
@click.option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d.zip", help="Archive.")
@click.option(
    "--with-engines/--without-engines", "engines", default=False, help="TensorRT plans, which run on one kind of GPU."
)
@overwrite_option("file")
def pack(bundle: Path, output: Path, engines: bool, overwrite: bool) -> None:
    """Pack BUNDLE as one archive; the same bundle gives the same bytes."""
    from e3d_deploy.bundle.pack import pack as pack_bundle
    from e3d_deploy.files import sha256

    with working(f"packing {bundle}") as progress:
        opened = open_bundle(bundle)
        pack_bundle(opened, output, engines=engines, overwrite=overwrite, progress=progress)
    click.echo(output)
    click.echo(f"{megabytes(output.stat().st_size)}, SHA-256 {sha256(output)}", err=True)
    if opened.manifest.engines and not engines:
        left = ", ".join(opened.manifest.engines)
        click.echo(f"left out: the engines {left}; `e3d build` makes them again on the device", err=True)
    elif engines and not opened.manifest.engines:
        click.echo(f"--with-engines: {bundle} holds none; `e3d build` makes them", err=True)
    next_command("unpack", output, "-o", f"{output.name.removesuffix('.zip').removesuffix('.e3d')}.e3d")
