"""`e3d build`: builds TensorRT engines for a bundle."""

from pathlib import Path
from typing import Any, get_args

import click

from e3d_deploy.commands._engines import TARGETS, show_engines
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle, open_cache
from e3d_deploy.commands._options import BUNDLE, PATH, Finite, is_given, names
from e3d_deploy.commands._output import next_command, warn, working
from e3d_deploy.config import HardwareCompatibility


def buckets(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Parse batch sizes: `8` gives (8, 8, 8); `1,8,16` gives the smallest, usual and largest batch size."""
    try:
        parts = [[int(part) for part in text.split(",")] for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"got {', '.join(texts)!r}, expected batch sizes such as 8 or 1,8,16") from error
    return tuple(tuple(part * 3 if len(part) == 1 else part) for part in parts)


GROUPS = {
    "Engines": ("target", "graphs", "batches", "optimization_level", "workspace_mb", "refittable", "timing_cache"),
    "Supported GPUs and versions": ("compute_capabilities", "hardware_compatibility", "version_compatible"),
    "Engine cache": ("cache_folder", "cache_limit_gb"),
}
EXAMPLES = (
    "e3d build small.e3d --graphs step",
    "e3d build small.e3d --target tensorrt-rtx --compute-capability 8.6,8.9",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE
@option(
    "--target",
    type=TARGETS,
    help="TensorRT library to build for.",
    show_default="the installed library",
)
@option(
    "--graphs",
    callback=lambda context, parameter, text: () if text is None else names(context, parameter, text),
    metavar="NAMES",
    help="Graphs to build: any of step, rollout, clip. Streams need only step.",
    show_default="all graphs of the bundle",
)
@option(
    "--workspace-mb",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Maximum scratch memory of the builder (MB).",
    show_default="all GPU memory",
)
@option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    default=3,
    help="Optimization level from 0 (fast build) to 5 (fast engine).",
)
@option(
    "--batch-bucket",
    "batches",
    multiple=True,
    callback=buckets,
    metavar="N|MIN,OPT,MAX",
    help="Batch size, or range of batch sizes, to optimize for; repeatable. Only for graphs exported with --batch any.",
    show_default="1, and 2 for the step graph",
)
@option(
    "--compute-capability",
    "compute_capabilities",
    metavar="8.6,8.9",
    help="Compute capabilities of the GPUs to build for (tensorrt-rtx only).",
    show_default="all that the library supports",
)
@option(
    "--hardware-compatibility",
    type=click.Choice(get_args(HardwareCompatibility)),
    default="none",
    help="Additional GPUs that can run the engine (tensorrt only).",
)
@option("--version-compatible", is_flag=True, help="Allow later TensorRT versions to run the engine (tensorrt only).")
@option("--refit", "refittable", is_flag=True, help="Allow `e3d refit` to replace the weights of the engine.")
@option("--timing-cache", type=PATH, help="File of kernel timings that later builds reuse (tensorrt only).")
@option(
    "--cache",
    "cache_folder",
    metavar="PATH|none",
    help="Folder of the engine cache, or none.",
    show_default="~/.cache/e3d_deploy",
)
@option(
    "--cache-limit-gb",
    type=Finite(min=0),
    default=10.0,
    metavar="GB",
    help="Maximum size of the cache (GB); the least recently used engines are removed.",
)
def build(
    bundle: Path,
    target: Any,
    graphs: tuple[str, ...],
    workspace_mb: int | None,
    compute_capabilities: str | None,
    timing_cache: Path | None,
    cache_folder: str | None,
    cache_limit_gb: float,
    **options: Any,
) -> None:
    """Build TensorRT engines for the graphs of a bundle.

    Engines in the engine cache are reused.
    """
    from e3d_deploy.config import EngineConfig
    from e3d_deploy.export.engines.build import build as build_engines
    from e3d_deploy.export.engines.choose import check_graphs, cost, default_target
    from e3d_deploy.workflows.places import check_apart

    if cache_folder == "none" and is_given("cache_limit_gb"):
        raise click.UsageError("--cache-limit-gb has no effect with --cache none; leave it out")
    check_apart(timing_cache, bundle)
    if cache_folder not in (None, "none"):
        check_apart(Path(cache_folder), bundle)
    if target is None:
        target = default_target()
        click.echo(f"target: {target}, the installed library", err=True)
    config = EngineConfig(
        workspace_bytes=None if workspace_mb is None else workspace_mb * 1_000_000,
        compute_capabilities=() if compute_capabilities is None else tuple(compute_capabilities.split(",")),
        timing_cache=None if timing_cache is None else str(timing_cache),
        **options,
    )
    cache = None
    try:
        cache = None if cache_folder == "none" else open_cache(cache_folder, cache_limit_gb)
    except OSError as error:
        if cache_folder is not None:
            raise
        click.echo(f"the engine cache is not used: {error.filename}: {error.strerror}", err=True)
    opened = open_bundle(bundle)
    graphs = check_graphs(opened, graphs)
    click.echo(cost(opened, graphs, target), err=True)
    with working(f"building {target}") as progress:
        sidecars = build_engines(
            opened,
            target,
            config,
            graphs=graphs,
            cache=cache,
            progress=progress,
            remark=lambda text: click.echo(text, err=True),
        )
    show_engines(target, sidecars)
    warn("the engines were built and not run, so their results are not verified")
    next_command("verify", bundle, "--backend", target, how=", on a machine with an NVIDIA GPU")
