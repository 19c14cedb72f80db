"""`e3d refit`: reuses the engines of one bundle with the weights of another."""

from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._engines import TARGETS, show_engines
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH
from e3d_deploy.commands._output import next_command, warn, working


@click.command(
    cls=GroupedCommand,
    examples=(
        "e3d refit small.e3d --from older.e3d --target tensorrt",
        "e3d refit small.e3d --from older.e3d --target tensorrt-rtx",
    ),
)
@BUNDLE
@option(
    "--from", "source_", type=PATH, required=True, metavar="BUNDLE", help="Bundle with the engines, built with --refit."
)
@option("--target", type=TARGETS, required=True, help="TensorRT library of the engines.")
def refit(bundle: Path, source_: Path, target: Any) -> None:
    """Reuse the engines of another bundle with new weights.

    Copies the engines of the bundle --from into BUNDLE and gives them the weights of BUNDLE, which is faster than
    `e3d build`. The graphs of both bundles may differ only in their weights. Needs a GPU that runs these engines.
    """
    from e3d_deploy.export.engines.refit import refit as refit_engines
    from e3d_deploy.workflows.places import check_apart

    check_apart(bundle, source_)
    with working(f"refitting {target}") as progress:
        sidecars = refit_engines(open_bundle(bundle), open_bundle(source_), target, progress=progress)
    show_engines(target, sidecars)
    warn("the engines were refitted and not run, so their results are not verified")
    next_command("verify", bundle, "--backend", target)
