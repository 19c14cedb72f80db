"""`e3d doctor`: shows which libraries, devices and backends this machine has."""

from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import PATH, THREADS, json_option
from e3d_deploy.commands._output import as_json, table, verdict, warn, working


@click.command(cls=GroupedCommand, examples=("e3d doctor", "e3d doctor --bundle small.e3d --again"))
@option("--bundle", type=PATH, help="Bundle for which to show the backend that auto selects, and the reason.")
@option("--again", is_flag=True, help="Select the backend again instead of reusing the last choice; requires --bundle.")
@THREADS
@json_option()
def doctor(bundle: Path | None, again: bool, threads: int | None, json_: bool) -> None:
    """Check which libraries, devices and backends this machine has.

    Shows what each library provides and how to install a missing one.
    """
    from e3d_deploy.doctor import examine

    if again and bundle is None:
        raise click.UsageError("--again requires --bundle; give both, or neither")
    if threads is not None and bundle is None:
        raise click.UsageError("--threads requires --bundle; give both, or neither")
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
        ["library", "version", "provides", "install with"],
        [(one["library"], one["version"] or "–", one["gives"], one["get"] or "") for one in found["libraries"]],
        left=4,
    )
    click.echo(f"telemetry: {found['contacts']}")
    click.echo(f"cache: {found['cache']}")
    if "choice" in found:
        click.echo()
        table(
            ["backend", "ms per step", "reason"],
            [
                (one["backend"], "–" if one["step_ms"] is None else f"{one['step_ms']:.2f}", one["reason"])
                for one in found["choice"]["tried"]
            ],
            left=3,
        )
        click.echo(f"auto selects {found['choice']['backend']} for {bundle}")
    for warning in found["warnings"]:
        warn(warning)
    ready = [name for name, there in found["backends"].items() if there]
    if ready:
        verdict(True, f"installed backends: {', '.join(ready)}; `e3d verify BUNDLE` checks their results")
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
