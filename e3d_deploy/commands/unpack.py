"""`e3d unpack`: unpacks the archive of a bundle."""

from pathlib import Path

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import BUNDLE_OUTPUT, PATH, overwrite_option
from e3d_deploy.commands._output import next_command, warn, working


@click.command(
    cls=GroupedCommand,
    examples=("e3d unpack small.e3d.zip -o small.e3d", "e3d unpack small.e3d.zip -o small.e3d --trust-engines"),
)
@click.argument("archive", metavar="FILE", type=PATH)
@BUNDLE_OUTPUT
@option(
    "--trust-engines",
    is_flag=True,
    help="Keep the TensorRT engines, which are native code; only for a trusted sender.",
)
@option("--limit-mb", type=click.IntRange(min=1), default=2000, metavar="MB", help="Maximum unpacked size (MB).")
@overwrite_option("bundle")
def unpack(archive: Path, output: Path, trust_engines: bool, limit_mb: int, overwrite: bool) -> None:
    """Unpack an archive of `e3d pack` into a bundle.

    The whole content of FILE is checked before anything is written.
    """
    from e3d_deploy.bundle.pack import unpack as unpack_bundle
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.workflows.places import check_apart

    check_apart(output, archive)
    if archive.is_dir():
        raise ConfigError(f"{archive}: got a folder, expected an archive of `e3d pack`; a bundle needs no unpacking")
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
            f"dropped: the engines {', '.join(dropped)}, because they are native code; build them on this machine, "
            "or give --trust-engines if you trust the sender"
        )
    next_command("verify", output)
