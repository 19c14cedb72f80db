"""`e3d cache`: lists, removes and checks the engines in the engine cache."""

import shlex
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._help import ExampleGroup, GroupedCommand, option
from e3d_deploy.commands._options import json_option
from e3d_deploy.commands._output import as_json, megabytes, table, verdict, warn, working

if TYPE_CHECKING:
    from e3d_deploy.export.engines.cache import EngineCache

CACHE = option(
    "--cache",
    "cache_folder",
    metavar="PATH",
    help="Folder of the engine cache.",
    show_default="~/.cache/e3d_deploy",
)


@click.group(cls=ExampleGroup, examples=("e3d cache ls", "e3d cache rm 4f1d2a9c03be"))
def cache() -> None:
    """List, remove and check the engines that `e3d build` caches."""


@cache.command("ls", cls=GroupedCommand, examples=("e3d cache ls", "e3d cache ls --cache engines --json"))
@CACHE
@json_option()
def cache_ls(cache_folder: str | None, json_: bool) -> None:
    """List the cached engines, from least to most recently used."""
    opened = open_existing(cache_folder)
    entries = opened.entries()
    damaged = sorted(set(opened.keys()) - {one.key for one in entries})
    if json_:
        rows = [
            {
                "key": one.key,
                "bytes": one.nbytes,
                "used": one.used.isoformat(timespec="seconds"),
                **one.parts,
            }
            for one in entries
        ]
        as_json({"folder": str(opened.folder), "entries": rows, "damaged": damaged})
        return
    table(
        ["key", "graph", "weights", "builder", "compute capability", "precision", "profile", "size", "last use"],
        [(key[:12], "damaged", *[""] * 7) for key in damaged]
        + [
            (
                one.key[:12],
                f"{one.sidecar.graph} {one.parts['graph'][:8]}",
                one.parts["weights"][:8],
                f"{one.sidecar.target} {one.sidecar.builder}",
                one.sidecar.compute_capability,
                one.parts["precision"],
                one.parts["profile"],
                megabytes(one.nbytes),
                f"{one.used:%Y-%m-%d %H:%M}",
            )
            for one in entries
        ],
        left=7,
    )
    click.echo(f"{len(entries)} engines, {megabytes(sum(one.nbytes for one in entries))} in {opened.folder}", err=True)


@cache.command("rm", cls=GroupedCommand, examples=("e3d cache rm 4f1d2a9c03be", "e3d cache rm --all"))
@click.argument("keys", metavar="KEY...", nargs=-1)
@option("--all", "all_", is_flag=True, help="Remove all engines.")
@CACHE
def cache_rm(keys: tuple[str, ...], all_: bool, cache_folder: str | None) -> None:
    """Remove engines from the cache.

    KEY is the key of an engine, as `e3d cache ls` lists it, or its first characters.
    """
    from e3d_deploy.errors import ConfigError

    if keys and all_:
        raise ConfigError("KEY: got keys and --all, expected only one of them; leave the keys or --all out")
    if not keys and not all_:
        raise ConfigError("KEY: got no key, expected at least one; give the keys of engines, or --all")
    opened = open_existing(cache_folder)
    for key in opened.keys() if all_ else [opened.matching(prefix) for prefix in keys]:
        opened.remove(key)
        click.echo(key)


@cache.command("verify", cls=GroupedCommand, examples=("e3d cache verify", "e3d cache verify --cache engines"))
@CACHE
def cache_verify(cache_folder: str | None) -> None:
    """Find damaged engines by comparing hashes.

    `e3d build` does not use damaged engines.
    """
    from e3d_deploy.errors import CacheError

    opened = open_existing(cache_folder)
    with working(f"hashing {opened.folder}"):
        damaged = opened.damaged()
    for key, problem in damaged.items():
        click.echo(f"{key[:12]}: {problem}")
    if not opened.keys():
        warn(f"nothing to check: {opened.folder} has no engines")
        return
    text = f"{len(damaged)} of {len(opened.keys())} engines are damaged"
    where = ["--cache", cache_folder] if cache_folder else []
    command = shlex.join(["e3d", "cache", "rm", *(key[:12] for key in damaged), *where])
    verdict(not damaged, text, remedy=f"`{command}` removes them", failure=CacheError)


def open_existing(folder: str | None) -> "EngineCache":
    """Open an engine cache, by default that of the user; never create its folder.

    Raises:
        ConfigError: the folder does not exist, or other users can write to it.
    """
    from e3d_deploy.export.engines.cache import EngineCache

    return EngineCache(folder, create=False)
