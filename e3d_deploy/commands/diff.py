"""`e3d diff`: compares two bundles or model files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import PATH, json_option
from e3d_deploy.commands._output import as_json, grouped, table, verdict, working


@click.command(
    cls=GroupedCommand,
    examples=("e3d diff older.e3d newer.e3d", "e3d diff small.e3d runs/small/model.safetensors --exit-code"),
)
@click.argument("one", metavar="A", type=PATH)
@click.argument("other", metavar="B", type=PATH)
@option("--exit-code", is_flag=True, help="Exit with 3 if A and B differ.")
@json_option()
def diff(one: Path, other: Path, exit_code: bool, json_: bool) -> None:
    """Show the differences between two bundles or model files.

    A may be a bundle and B a model file, or the reverse. File names and creation times are ignored.
    """
    from e3d_deploy.diff import diff as compare

    with working(f"comparing {one} with {other}"):
        found = compare(one, other)
    if json_:
        as_json(found)
    else:
        show_difference(found)
    differs = found["differs_in"]
    line = f"{one} and {other} " + (f"differ in {', '.join(differs)}" if differs else "are the same")
    if differs and exit_code:
        verdict(False, line)
    click.echo(line, err=json_)


def show_difference(found: Mapping[str, Any]) -> None:
    """Print the differences as tables."""
    for name in found["differs_in"]:
        if name != "weights":
            rows = [(key, *(grouped(value)[:60] for value in pair)) for key, pair in found[name].items()]
            table([name, "A", "B"], rows, left=3)
            click.echo()
    weights = found["weights"]
    for text, names in (("only in A", weights["only_a"]), ("only in B", weights["only_b"])):
        if names:
            click.echo(f"weights {text}: {', '.join(names)}")
    if weights["shapes"]:
        table(["weights", "A", "B"], [(name, *pair) for name, pair in weights["shapes"].items()], left=3)
    if weights["largest"]:
        table(
            [f"the {len(weights['largest'])} weights that changed most", "shape", "max |Δ|", "‖Δ‖ / ‖A‖"],
            [
                (
                    row["name"],
                    row["shape"],
                    *(scientific(row[key]) for key in ("max_abs", "relative")),
                )
                for row in weights["largest"]
            ],
        )
    click.echo(f"weights: {weights['same']} the same, {weights['changed']} changed")
    for reason in sorted(set(found["not_compared"].values())):
        names = [name for name, why in found["not_compared"].items() if why == reason]
        click.echo(f"not compared, {reason}: {', '.join(names)}")


def scientific(value: float | None) -> str:
    """Format a number with two digits, or `–` if it is None."""
    return "–" if value is None else f"{value:.1e}"
