"""`e3d unpack`: a bundle from its archive."""

from pathlib import Path

import click

from e3d_deploy.commands._options import BUNDLE_OUTPUT, PATH, overwrite_option
from e3d_deploy.commands._output import next_command, warn, working


@click.command()
@click.argument("archive", metavar="FILE", type=PATH)
@BUNDLE_OUTPUT
@click.option("--trust-engines", is_flag=True, help="Keep TensorRT plans: native code of whoever packed them.")
@click.option("--limit-mb", type=click.IntRange(min=1), default=2000, help="Most that may come out.")
@overwrite_option("bundle")
def unpack(archive: Path, output: Path, trust_engines: bool, limit_mb: int, overwrite: bool) -> None:
    """Take FILE, which `e3d pack` wrote, apart into a bundle, after everything in it was checked."""
    from e3d_deploy.bundle.pack import unpack as unpack_bundle
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.errors import ConfigError

    check_apart(output, archive)
    if archive.is_dir():
        raise ConfigError(f"{archive}: a folder, not an archive that `e3d pack` wrote; a bundle is used as it is")
    with working(f"unpacking {archive}") as progress:
        _, dropped = unpack_bundle(
            archive,
            output,
            trust_engines=trust_engines,
            overwrite=overwrite,
            most_bytes=limit_mb * 1_000_000,
            progress=progress,
        )
    click.echo(output)
    if dropped:
        warn(
            f"dropped: the engines {', '.join(dropped)}, native code that came with an archive; build them here, "
            "or give --trust-engines if you know who packed them"
        )
    next_command("verify", output)
