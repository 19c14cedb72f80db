"""`e3d refit`: engines of one bundle with the weights of another."""

from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._engines import TARGETS, show_engines
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH
from e3d_deploy.commands._output import next_command, warn, working


@click.command()
@BUNDLE
@click.option("--from", "source_", type=PATH, required=True, metavar="BUNDLE", help="Whose engines to take.")
@click.option("--target", type=TARGETS, required=True, help="Which engines.")
def refit(bundle: Path, source_: Path, target: Any) -> None:
    """Give BUNDLE the engines of another bundle of the same form, with its own weights.

    They must have been built with --refit. Quicker than building; needs the GPU that the engines are for.
    """
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.export.engines.refit import refit as refit_engines

    check_apart(bundle, source_)
    with working(f"refitting {target}") as progress:
        sidecars = refit_engines(open_bundle(bundle), open_bundle(source_), target, progress=progress)
    show_engines(target, sidecars)
    warn("refitted, not run: what a plan computes is unproved")
    next_command("verify", bundle, "--backend", target)
