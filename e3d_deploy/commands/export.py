"""`e3d export`: exports a model as a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE_OUTPUT, LAYOUT, MAX_FRAMES, PATH, Count, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command, table, working
from e3d_deploy.policies import POLICIES, parse_budget
from e3d_deploy.runtime.backends.specs import RECOMMENDED, export_backends, find

if TYPE_CHECKING:
    from e3d_deploy.bundle.manifest import Tried

MAX_STREAMS = 4096
"""Maximum fixed batch size. Export runs a rollout of the whole batch in PyTorch, which needs memory for each stream."""


def streams(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """Parse a batch size; `any` becomes None."""
    if text == "any":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_STREAMS:
        raise click.BadParameter(f"got {text!r}, expected a number from 1 to {MAX_STREAMS}, or any")
    return int(text)


GROUPS = {
    "Graphs": ("context_length", "horizon", "batch", "backend"),
    "Precision": ("precision", "budget", "exclude", "calibration"),
    "Reference clip": ("reference", "layout"),
    "Output": ("output", "overwrite"),
}
EXAMPLES = (
    "e3d export runs/small/model.safetensors -o small.e3d",
    "e3d export model.safetensors -o int8.e3d --precision int8 --calibration clips/",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@click.argument("model", type=PATH)
@BUNDLE_OUTPUT
@option(
    "--context",
    "context_length",
    type=Count(MAX_FRAMES),
    help="Context of the clip graph (frames).",
    show_default="as trained, or 10",
)
@option(
    "--horizon",
    type=Count(MAX_FRAMES),
    help="Horizon of the clip graph (frames).",
    show_default="as trained, or 10",
)
@option(
    "--batch",
    default="any",
    callback=streams,
    metavar="N|any",
    help="Batch size of the graphs: the number of streams per step.",
)
@option(
    "--precision",
    type=click.Choice([*POLICIES, "auto"]),
    default="fp32",
    help="Data type of convolutions and matrix products; auto chooses the cheapest data type whose loss of "
    "quality is within the budget.",
)
@option(
    "--budget",
    metavar="NAME=NUMBER,…",
    help="Allowed loss of quality compared with PyTorch: dssim (loss of SSIM), dpsnr (loss of PSNR, dB) or difference "
    "(largest difference of predictions).",
    show_default="the budget of the chosen precision",
)
@option("--exclude", multiple=True, metavar="LAYER", help="Layer to keep in float32; repeatable.")
@option(
    "--backend",
    type=click.Choice(export_backends()),
    help="Backend that must run the bundle; backend-specific graphs for other backends are not written.",
    show_default="all backends",
)
@option("--calibration", type=PATH, help="Clips for the calibration and for measuring the drift.")
@option(
    "--reference",
    type=PATH,
    help="Clip for which PyTorch's outputs are recorded.",
    show_default="a clip of the package",
)
@LAYOUT
@overwrite_option("bundle")
def export(model: Path, output: Path, budget: str | None, **options: Any) -> None:
    """Export a model as a bundle of ONNX graphs.

    MODEL is a model file. The bundle also gets the weights, a reference clip and the manifest.
    """
    from e3d_deploy.export.bundle import export as export_model
    from e3d_deploy.workflows.places import check_apart

    check_apart(output, model, options["calibration"], options["reference"], holds_clips=True)
    allowed = None if budget is None else parse_budget(budget)
    with working(f"exporting {model}") as progress:
        export_model(model, output, budget=allowed, progress=progress, **options)
    bundle = open_bundle(output)
    if tried := bundle.manifest.precision.tried:
        show_policies(tried, bundle.precision)
    table(
        ["graph", "backends", "nodes", "opset", "precision", "precision set by"],
        [
            (one.file, ", ".join(one.backends or ("all other backends",)), one.nodes, one.opset, one.precision, one.by)
            for one in bundle.manifest.graphs
        ],
        left=2,
    )
    click.echo(output)
    next_command(
        "verify", output, *(() if bundle.precision in find(RECOMMENDED).policies else ("--backend", "emulated"))
    )


def show_policies(tried: Sequence["Tried"], chosen: str) -> None:
    """Print the precision policies that were tried, from cheapest to most expensive, with their loss of quality."""
    forms = {"difference": ".1e", "dssim": "+.1e", "dpsnr": "+.3f"}

    def drift(one: "Tried") -> list[str]:
        found = {name: one.drift.get(name) for name in forms}
        return ["not finite" if value is None else format(value, forms[name]) for name, value in found.items()]

    table(
        [
            "precision",
            "graph and weights",
            "time per step",
            "max |Δ|",
            "SSIM lost",
            "PSNR lost, dB",
            "layers kept in float32",
            "",
        ],
        [
            (
                one.policy,
                megabytes(one.bytes),
                "–" if one.step_ms is None else f"{one.step_ms:.2f} ms",
                *drift(one),
                ", ".join(one.exclude) or "–",
                "chosen" if one.policy == chosen else "over its budget",
            )
            for one in tried
        ],
    )
    click.echo(
        "each loss is that of the worst clip over a whole rollout; each time per step is that of the step graph on "
        "ONNX Runtime",
        err=True,
    )
