"""`e3d inspect`: shows the content of a bundle or a model file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._help import GroupedCommand
from e3d_deploy.commands._options import PATH, json_option
from e3d_deploy.commands._output import as_json, grouped, table

if TYPE_CHECKING:
    from e3d_deploy.inspect import BundleContents, ModelContents

LABELS = {
    "state_bytes_per_stream": "state of a stream, bytes",
    "step_inputs": "step input",
    "counted": "counting method",
    "largest_difference": "largest difference",
    "flop_per_step": "FLOP per step",
    "bytes_moved_per_step": "bytes moved per step",
    "flop": "FLOP",
    "bytes_moved": "bytes moved",
    "input_bytes": "input bytes",
    "output_bytes": "output bytes",
    "read_weight_bytes": "weight bytes read",
    "intermediate_bytes": "intermediate bytes",
    "weight_bytes": "weight bytes",
    "unknown_nodes": "nodes of unknown shape",
}
"""Labels in the tables for JSON keys that need an explanation."""
YOUNG_RING = (
    "empty slots are masked with minus infinity, which is slow with ONNX Runtime on some processors; export the model "
    "again"
)
ONE_BY_ONE = "stepped one after another; export with `--batch any` to step them together"


@click.command(
    cls=GroupedCommand, examples=("e3d inspect small.e3d", "e3d inspect runs/small/model.safetensors --json")
)
@click.argument("path", metavar="BUNDLE_OR_MODEL", type=PATH)
@json_option()
def inspect(path: Path, json_: bool) -> None:
    """Show the content of a bundle or a model file."""
    from e3d_deploy.inspect import inspect as look

    found = look(path)
    if json_:
        as_json(found.to_json())
        return
    for title, rows in sections(path, found).items():
        label = LABELS.get(title, title)
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            cells = [
                (LABELS.get(name, name), *(grouped(row.get(one)) for one in columns)) for name, row in rows.items()
            ]
            table([label, *(LABELS.get(column, column) for column in columns)], cells)
        elif isinstance(rows, dict):
            table([label, ""], [(LABELS.get(name, name), grouped(value)) for name, value in rows.items()])
        else:
            click.echo(f"{label}: {rows}")
        click.echo()


def sections(path: Path, found: "BundleContents | ModelContents") -> dict[str, Any]:
    """Return the sections to print, by title."""
    shown = found.to_json()
    decay = shown["decay"]
    shown["decay"] = decay["verdict"] if decay else f"not measured; run `e3d evaluate {path} --streaming --record`"
    if "bundle" not in shown:
        return shown
    shown["bundle"] = bundle_rows(shown["bundle"])
    if missing := shown.pop("cost_missing"):
        shown["cost"] = f"unknown: {missing}"
    return {title: rows for title, rows in shown.items() if rows is not None}


def bundle_rows(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the section `bundle`, with a remark if streams are stepped singly or empty slots are slow."""
    rows = dict(bundle)
    history, producer, slow = rows.pop("history"), rows.pop("producer"), rows.pop("slow_young_ring")
    state_bytes = rows.pop("state_bytes_per_stream")
    if rows["batch"] == 1:
        rows["many streams"] = ONE_BY_ONE
    if slow:
        rows["ring with empty slots"] = YOUNG_RING
    rows["history"] = f"exact for {history['exact_for_steps']} steps, then {history['then']}"
    rows |= {f"version of {name}": version for name, version in producer.items()}
    return {**rows, "state_bytes_per_stream": state_bytes}
