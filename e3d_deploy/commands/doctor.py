"""`e3d doctor`: what this machine has and lacks."""

import click

from e3d_deploy.commands.options import json_option
from e3d_deploy.commands.output import as_json, table, verdict


@click.command()
@json_option()
def doctor(json_: bool) -> None:
    """Say what this machine has, what it lacks, what that costs and how to get it."""
    from e3d_deploy.doctor import examine

    found = examine()
    if json_:
        as_json(found)
        return
    machine = found["machine"]
    click.echo(f"e3d_deploy {found['e3d_deploy']}, Python {found['python']}, {machine['system']}")
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores, NVIDIA driver: {'yes' if machine['nvidia_driver'] else 'no'}"
    )
    table(
        ["library", "version", "gives", "get it by"],
        [(one["library"], one["version"] or "–", one["gives"], one["get"] or "") for one in found["libraries"]],
    )
    for warning in found["warnings"]:
        click.echo(f"WARN {warning}", err=True)
    ready = [name for name, there in found["backends"].items() if there]
    if ready:
        verdict(True, f"installed backends: {', '.join(ready)}; `e3d verify` proves them on a bundle")
    else:
        click.echo("WARN no backend is installed; pip install 'e3d_deploy[cpu]'", err=True)
