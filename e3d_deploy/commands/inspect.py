"""`e3d inspect`: content of a bundle or a model file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._options import PATH, json_option
from e3d_deploy.commands._output import as_json, grouped, table

if TYPE_CHECKING:
    from e3d_deploy.inspect import BundleContents, ModelContents

LABELS = {
    "state_bytes_per_stream": "state of a stream, bytes",
    "step_inputs": "step input",
    "counted": "how it is counted",
    "largest_difference": "largest difference",
    "flop_per_step": "FLOP a step",
    "bytes_moved_per_step": "bytes moved a step",
    "flop": "FLOP",
    "bytes_moved": "bytes moved",
    "input_bytes": "of them inputs",
    "output_bytes": "outputs",
    "read_weight_bytes": "weights, at each use",
    "intermediate_bytes": "between nodes",
    "weight_bytes": "bytes of weights",
    "unknown_nodes": "nodes of unknown shape",
}
"""Words of the tables for keys of the JSON that do not speak for themselves."""
YOUNG_RING = (
    "masked with minus infinity, with which ONNX Runtime is slow on some processors until the ring is full; export the "
    "model again"
)
ALONE = "stepped one after another; export with `--batch any` to step them together"


@click.command()
@click.argument("path", metavar="BUNDLE_OR_MODEL", type=PATH)
@json_option()
def inspect(path: Path, json_: bool) -> None:
    """Show what a bundle or a model file holds."""
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
    """Return the content as sections to print, by title."""
    shown = found.to_json()
    decay = shown["decay"]
    shown["decay"] = decay["verdict"] if decay else f"not measured; `e3d evaluate {path} --streaming --record` does"
    if "bundle" not in shown:
        return shown
    shown["bundle"] = bundle_rows(shown["bundle"])
    if missing := shown.pop("cost_missing"):
        shown["cost"] = f"not known: {missing}"
    return {title: rows for title, rows in shown.items() if rows is not None}


def bundle_rows(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the section `bundle`, with remarks on streams and on rings where there are any."""
    rows = dict(bundle)
    history, producer, slow = rows.pop("history"), rows.pop("producer"), rows.pop("slow_young_ring")
    state_bytes = rows.pop("state_bytes_per_stream")
    if rows["batch"] == 1:
        rows["many streams"] = ALONE
    if slow:
        rows["young ring"] = YOUNG_RING
    rows["history"] = f"exact for {history['exact_for_steps']} steps, then {history['then']}"
    rows |= {f"made by {name}": version for name, version in producer.items()}
    return {**rows, "state_bytes_per_stream": state_bytes}
