"""`e3d export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE_OUTPUT, LAYOUT, MOST_FRAMES, PATH, Count, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command, table, working
from e3d_deploy.errors import ConfigError
from e3d_deploy.policies import POLICIES, parse_budget
from e3d_deploy.runtime.backends.specs import RECOMMENDED, export_backends, find

if TYPE_CHECKING:
    from e3d_deploy.bundle.manifest import Tried

MOST_STREAMS = 4096
"""Larger numbers are almost certainly a typo: PyTorch records a rollout of all of them."""


def streams(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """`4`, or `any` as None."""
    if text == "any":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STREAMS:
        raise click.BadParameter(f"{text!r} is neither a number from 1 to {MOST_STREAMS} nor `any`")
    return int(text)


@click.command()
@click.argument("model", type=PATH)
@BUNDLE_OUTPUT
@click.option(
    "--context",
    "context_length",
    type=Count(MOST_FRAMES),
    help="Frames that the clip graph takes; else those of training, or 10.",
)
@click.option(
    "--horizon",
    type=Count(MOST_FRAMES),
    help="Frames that the clip graph gives; else those of training, or 10.",
)
@click.option(
    "--batch",
    default="any",
    show_default=True,
    callback=streams,
    help="Streams that the graphs run at once, or `any`.",
)
@click.option(
    "--precision",
    type=click.Choice([*POLICIES, "auto"]),
    default="fp32",
    help="Type of convolutions and matrix products; auto: the cheapest that keeps its budget.",
)
@click.option(
    "--budget",
    metavar="NAME=NUMBER,…",
    help="dssim, dpsnr, difference (of predictions); else that of the precision.",
)
@click.option("--exclude", multiple=True, metavar="LAYER", help="Stays in float32; may be given several times.")
@click.option(
    "--backend",
    type=click.Choice(export_backends()),
    help="Backend that must run it; only it gets graphs of its own.",
)
@click.option("--calibration", type=PATH, help="Clips to learn ranges from and to measure the drift on.")
@click.option("--reference", type=PATH, help="Clip to record PyTorch's answer to; else one of the package's.")
@LAYOUT
@overwrite_option("bundle")
def export(model: Path, output: Path, budget: str | None, **options: Any) -> None:
    """Export MODEL as a bundle: ONNX graphs, weights, reference clip, manifest."""
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.export.bundle import export as export_model

    check_apart(output, model, options["calibration"], options["reference"], holds_clips=True)
    allowed = None if budget is None else parse_budget(budget)
    if options["layout"] is not None and options["calibration"] is None and options["reference"] is None:
        raise click.UsageError("--layout is of --calibration and --reference: give one of them, or leave it out.")
    if options["calibration"] is not None and options["precision"] == "fp32" and allowed is None:
        raise ConfigError(
            "calibration: fp32 learns no ranges, and its drift is not measured without --budget; leave it out, or "
            "give another --precision"
        )
    with working(f"exporting {model}") as progress:
        export_model(model, output, budget=allowed, progress=progress, **options)
    bundle = open_bundle(output)
    if tried := bundle.manifest.precision.tried:
        show_policies(tried, bundle.precision)
    table(
        ["graph", "for", "nodes", "opset", "precision", "by"],
        [
            (one.file, ", ".join(one.backends or ("all others",)), one.nodes, one.opset, one.precision, one.by)
            for one in bundle.manifest.graphs
        ],
        left=2,
    )
    click.echo(output)
    next_command(
        "verify", output, *(() if bundle.precision in find(RECOMMENDED).policies else ("--backend", "emulated"))
    )


def show_policies(tried: Sequence["Tried"], chosen: str) -> None:
    """Print the policies that were tried, the cheapest first, and what each costs."""
    forms = {"difference": ".1e", "dssim": "+.1e", "dpsnr": "+.3f"}

    def drift(one: "Tried") -> list[str]:
        found = {name: one.drift.get(name) for name in forms}
        return ["no number" if value is None else format(value, forms[name]) for name, value in found.items()]

    table(
        ["precision", "graph and weights", "a step here", "max |Δ|", "SSIM lost", "PSNR lost, dB", "in float32", ""],
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
    click.echo("over whole rollouts, the worst of the clips; a step: of the step graph on ONNX Runtime", err=True)
