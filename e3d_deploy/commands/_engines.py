"""Values of the option --target, and the table of engines."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

import click

from e3d_deploy.commands._output import megabytes, table
from e3d_deploy.tensorrt_library import Target

if TYPE_CHECKING:
    from e3d_deploy.bundle.sidecar import EngineSidecar

TARGETS = click.Choice(get_args(Target))


def show_engines(target: str, sidecars: Mapping[str, "EngineSidecar"]) -> None:
    """Print the engines that were added to a bundle as a table."""
    table(
        ["engine", "builder", "compute capability", "precision", "precision from", "size", "build time"],
        [
            (
                f"engines/{graph}.{target}.plan",
                one.builder,
                one.compute_capability,
                one.precision.proved,
                one.precision.by,
                megabytes(one.bytes),
                f"{one.build_seconds:.1f} s" + (", cached" if one.cached else ""),
            )
            for graph, one in sidecars.items()
        ],
    )
