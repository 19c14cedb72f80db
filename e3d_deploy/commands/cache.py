"""`e3d cache`: engines that are kept."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._options import json_option
from e3d_deploy.commands._output import as_json, megabytes, table, verdict, warn, working

if TYPE_CHECKING:
    from e3d_deploy.export.engines.cache import EngineCache

CACHE = click.option(
    "--cache",
    "cache_folder",
    metavar="DIR",
    help="Folder of engines to take again.",
    show_default="~/.cache/e3d_deploy",
)


@click.group()
def cache() -> None:
    """Look after the engines that `e3d build` keeps to take again."""


@cache.command("ls")
@CACHE
@json_option()
def cache_ls(cache_folder: str | None, json_: bool) -> None:
    """Show the engines, that which was used last at the end."""
    opened = there(cache_folder)
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
        ["key", "graph", "weights", "builder", "runs on", "precision", "profile", "size", "last use"],
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


@cache.command("rm")
@click.argument("keys", metavar="KEY...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Remove all of them.")
@CACHE
def cache_rm(keys: tuple[str, ...], all_: bool, cache_folder: str | None) -> None:
    """Remove engines by the beginnings of their keys."""
    from e3d_deploy.errors import ConfigError

    if bool(keys) == all_:
        raise ConfigError("give keys, or --all")
    opened = there(cache_folder)
    for key in opened.keys() if all_ else [opened.matching(prefix) for prefix in keys]:
        opened.remove(key)
        click.echo(key)


@cache.command("verify")
@CACHE
def cache_verify(cache_folder: str | None) -> None:
    """Hash every engine, and say which are damaged; `e3d build` uses none of those."""
    from e3d_deploy.errors import CacheError

    opened = there(cache_folder)
    with working(f"hashing {opened.folder}"):
        damaged = opened.damaged()
    for key, problem in damaged.items():
        click.echo(f"{key[:12]}: {problem}")
    if not opened.keys():
        warn(f"no verdict: {opened.folder} holds no engine")
        return
    text = f"{len(damaged)} of {len(opened.keys())} engines are damaged"
    where = ["--cache", cache_folder] if cache_folder else []
    command = shlex.join(["e3d", "cache", "rm", *(key[:12] for key in damaged), *where])
    verdict(not damaged, text, remedy=f"`{command}` removes them", failure=CacheError)


def there(folder: str | None) -> "EngineCache":
    """A cache that some build made."""
    from e3d_deploy.export.engines.cache import EngineCache
    from e3d_deploy.files import cache_folder

    return EngineCache(cache_folder("engines") if folder is None else Path(folder), create=False)
