"""`e3d doctor`: what this machine has and lacks."""

from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._options import PATH, THREADS, json_option
from e3d_deploy.commands._output import as_json, table, verdict, warn, working


@click.command()
@click.option("--bundle", type=PATH, help="Say also which backend auto takes for it here, and why.")
@click.option("--again", is_flag=True, help="With --bundle: choose again instead of taking what was chosen before.")
@THREADS
@json_option()
def doctor(bundle: Path | None, again: bool, threads: int | None, json_: bool) -> None:
    """Say what this machine has, what it lacks, what that costs and how to get it."""
    from e3d_deploy.doctor import examine

    if again and bundle is None:
        raise click.UsageError("--again is of --bundle: give both, or neither.")
    if threads is not None and bundle is None:
        raise click.UsageError("--threads is of --bundle: give both, or neither.")
    found = examine()
    if bundle is not None:
        found["choice"] = _choice(bundle, threads, again)
    if json_:
        as_json(found)
        return
    machine = found["machine"]
    click.echo(f"e3d_deploy {found['e3d_deploy']}, Python {found['python']}, {machine['system']}")
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores, NVIDIA driver: {'yes' if machine['nvidia_driver'] else 'no'}, "
        f"GPU: {machine['gpu'] or '–'}"
    )
    table(
        ["library", "version", "gives", "get it by"],
        [(one["library"], one["version"] or "–", one["gives"], one["get"] or "") for one in found["libraries"]],
        left=4,
    )
    click.echo(f"contacts: {found['contacts']}")
    click.echo(f"cache: {found['cache']}")
    if "choice" in found:
        click.echo()
        table(
            ["backend", "ms per step", "why"],
            [
                (one["backend"], "–" if one["step_ms"] is None else f"{one['step_ms']:.2f}", one["reason"])
                for one in found["choice"]["tried"]
            ],
            left=3,
        )
        click.echo(f"auto takes {found['choice']['backend']} for {bundle}")
    for warning in found["warnings"]:
        warn(warning)
    ready = [name for name, there in found["backends"].items() if there]
    if ready:
        verdict(True, f"installed backends: {', '.join(ready)}; `e3d verify` proves them on a bundle")
    else:
        from e3d_deploy.runtime.backends.specs import RECOMMENDED, find

        warn(f"no backend is installed; {find(RECOMMENDED).remedy}")


def _choice(bundle: Path, threads: int | None, again: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from e3d_deploy.runtime import Bundle
    from e3d_deploy.runtime.choose import choose

    with working("trying the backends"):
        backend, choice = choose(Bundle.open(bundle), threads=threads, again=again)
    backend.close()
    return asdict(choice)
