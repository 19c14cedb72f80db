"""`e3d build`: TensorRT engines of a bundle."""

from pathlib import Path
from typing import Any, get_args

import click

from e3d_deploy.commands._engines import TARGETS, show_engines
from e3d_deploy.commands._open import open_bundle, open_cache
from e3d_deploy.commands._options import BUNDLE, PATH, Finite, is_given, names
from e3d_deploy.commands._output import next_command, warn, working
from e3d_deploy.config import HardwareCompatibility


def buckets(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """`8` as streams that are always 8, `1,8,16` as 1 to 16 of them, mostly 8."""
    try:
        parts = [[int(part) for part in text.split(",")] for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(texts)!r}: expected streams such as 8, or 1,8,16") from error
    return tuple(tuple(part * 3 if len(part) == 1 else part) for part in parts)


@click.command()
@BUNDLE
@click.option("--target", type=TARGETS, help="Which builder; else the one that is installed here.")
@click.option(
    "--graphs",
    callback=lambda context, option, text: () if text is None else names(context, option, text),
    metavar="step,rollout,clip",
    help="Graphs to build; else all of the bundle. Streams run on the step alone.",
)
@click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory for kernels; else all there is.")
@click.option("--optimization-level", type=click.IntRange(0, 5), default=3, help="0 builds quickly, 5 runs quickly.")
@click.option(
    "--batch-bucket",
    "batches",
    multiple=True,
    callback=buckets,
    metavar="N|MIN,OPT,MAX",
    help="Streams that run at once, where the graphs leave it open; each bucket becomes a profile. Else 1; for the "
    "step also 2.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    metavar="8.6,8.9",
    help="tensorrt-rtx: the GPUs that the engine is for; else all that the library knows.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(get_args(HardwareCompatibility)),
    default="none",
    help="tensorrt: GPUs that the engine runs on beside this one.",
)
@click.option("--version-compatible", is_flag=True, help="tensorrt: let a later TensorRT run the engine.")
@click.option("--refit", "refittable", is_flag=True, help="Let `e3d refit` give the engine other weights.")
@click.option("--timing-cache", type=PATH, help="tensorrt: file that keeps how fast kernels were, for later builds.")
@click.option(
    "--cache",
    "cache_folder",
    metavar="DIR|none",
    help="Folder of engines to take again, and to keep these in.",
    show_default="~/.cache/e3d_deploy",
)
@click.option(
    "--cache-limit-gb",
    type=Finite(min=0),
    default=10.0,
    help="Beyond, engines that were not used for longest are removed.",
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
    """Build a TensorRT engine of each graph of BUNDLE, or take it from the cache."""
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.config import EngineConfig
    from e3d_deploy.export.engines.build import build as build_engines
    from e3d_deploy.export.engines.choose import check_graphs, cost, default_target

    if cache_folder == "none" and is_given("cache_limit_gb"):
        raise click.UsageError("--cache-limit-gb means nothing with --cache none; leave it out")
    check_apart(timing_cache, bundle)
    if cache_folder not in (None, "none"):
        check_apart(Path(cache_folder), bundle)
    if target is None:
        target = default_target()
        click.echo(f"target: {target}, the library that is installed here", err=True)
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
        click.echo(f"nothing is cached: {error.filename}: {error.strerror}", err=True)
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
    warn("built, not run: what a plan computes is unproved")
    next_command("verify", bundle, "--backend", target, how=", on a machine with an NVIDIA GPU")
