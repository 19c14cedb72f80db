"""`e3d inspect`: content of a bundle or a model file."""

from pathlib import Path

import click

from e3d_deploy.commands._options import PATH, json_option
from e3d_deploy.commands._output import as_json, grouped, table


@click.command()
@click.argument("path", metavar="BUNDLE_OR_MODEL", type=PATH)
@json_option()
def inspect(path: Path, json_: bool) -> None:
    """Show what a bundle or a model file holds."""
    from e3d_deploy.inspect import inspect as look

    found = look(path)
    if json_:
        as_json(found)
        return
    decay = found["decay"]
    found["decay"] = decay["verdict"] if decay else f"not measured; `e3d evaluate {path} --streaming --record` does"
    for title, rows in found.items():
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            cells = [(name, *(grouped(row.get(column)) for column in columns)) for name, row in rows.items()]
            table([title, *columns], cells)
        elif isinstance(rows, dict):
            table([title, ""], [(name, grouped(value)) for name, value in rows.items()])
        else:
            click.echo(f"{title}: {rows}")
        click.echo()
