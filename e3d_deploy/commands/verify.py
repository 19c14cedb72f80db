"""`e3d verify`: compares a backend with PyTorch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import BACKEND, BUNDLE, LAYOUT, MAX_FRAMES, PATH, THREADS, Count, json_option
from e3d_deploy.commands._output import as_json, table, verdict, warn, working
from e3d_deploy.policies import PICTURE_RANGE

if TYPE_CHECKING:
    from e3d_deploy.export.precision.diagnosis import Finding
    from e3d_deploy.runtime.verify import Report
    from e3d_deploy.workflows.verify import Against


GROUPS = {
    "Comparison": ("backend", "against", "clip", "layout", "steps", "threads"),
    "Output": ("picture", "json_"),
}
EXAMPLES = (
    "e3d verify small.e3d",
    "e3d verify small.e3d --backend openvino --steps 100 --picture drift.png",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE
@BACKEND
@option(
    "--against",
    type=click.Choice(["auto", "torch", "reference"]),
    default="auto",
    help="torch: PyTorch on this machine. reference: PyTorch's outputs recorded at export. auto: torch if it is "
    "installed, and reference otherwise or when PyTorch itself is verified.",
)
@option(
    "--clip",
    type=PATH,
    help="Clip to compare on; requires PyTorch.",
    show_default="the reference clip of the bundle",
)
@LAYOUT
@option(
    "--steps",
    type=Count(MAX_FRAMES),
    help="Number of steps to compare, at least those of the rollout. Further steps show how the difference grows; the "
    "verdict covers the rollout. Requires PyTorch.",
)
@THREADS
@option("--picture", type=PATH, help="PNG file for a plot of the difference at each step.")
@json_option("Print the report as JSON.")
def verify(
    bundle: Path,
    backend: str,
    against: "Against",
    clip: Path | None,
    layout: str | None,
    steps: int | None,
    threads: int | None,
    picture: Path | None,
    json_: bool,
) -> None:
    """Compare a backend with PyTorch over a whole rollout.

    Passes if all differences are within the budget of the bundle.
    """
    from e3d_deploy.workflows.verify import verify as run

    with working(f"verifying {bundle}"):
        found = run(
            bundle,
            backend,
            against=against,
            clip=clip,
            layout=layout,
            steps=steps,
            threads=threads,
            picture=picture,
            remark=lambda text: click.echo(text, err=True),
        )
    report = found.report
    if json_:
        as_json(found.to_json())
    else:
        show_report(report)
        if found.computed is not None:
            computed = products(found.computed)
            click.echo(f"matrix products and convolutions of a step on {report.backend}: {computed}")
        show_findings(found.findings)
    if report.has_no_verdict:
        warn(f"no verdict: {report.unproved}")
        return
    mend = "try another backend, or export the model again"
    if found.findings:
        first = found.findings[0]
        mend = f"the first error is in {first.layer} ({first.cause}); export again with {first.advice}"
    verdict(report.passed, judged(report), remedy=f"largest difference at {report.furthest}; {mend}")


def products(counts: Mapping[str, int]) -> str:
    """Format counts of operations by precision, from largest to smallest: `21 in bf16, 4 in fp32`."""
    ordered = sorted(counts.items(), key=lambda one: -one[1])
    return ", ".join(f"{count} in {policy}" for policy, count in ordered)


def judged(report: "Report") -> str:
    """Summarise a report in one line: each difference and its budget."""
    sides = f"{report.backend} against {report.yardstick}"
    if math.isinf(report.budget):
        lost = (("SSIM", report.dssim, report.dssim_budget, ""), ("PSNR", report.dpsnr, report.dpsnr_budget, " dB"))
        words = [
            f"{name} lost {'not finite' if found is None else format(found, '.1e')} (budget {allowed:.1e}{unit})"
            for name, found, allowed, unit in lost
            if allowed is not None
        ]
        off = f"predictions differ by {report.worst:.1e} (range {PICTURE_RANGE:g})"
        return f"{sides} in {report.precision}: {', '.join(words)}, {off}"
    line = f"{sides}: predictions {report.worst:.1e} (budget {report.budget:.1e}), states {report.worst_state[1]:.1e}"
    return line if math.isinf(report.state_budget) else f"{line} (budget {report.state_budget:.1e})"


def show_findings(findings: Sequence["Finding"]) -> None:
    """Print the first errors in the step graph as a table."""
    if findings:
        table(
            ["first node", "layer", "cause", "step", "relative error", "largest value", "export with"],
            [
                (one.node, one.layer, one.cause, one.step, f"{one.error:.1e}", f"{one.largest:.1e}", one.advice)
                for one in findings
            ],
            left=3,
        )


def show_report(report: "Report") -> None:
    """Print a report as tables."""
    kinds = ["hidden", "cell", "memory"] if report.states else []
    shown = {*range(report.steps), *range(report.steps, len(report.predictions), 10), len(report.predictions) - 1}
    table(
        ["step", "input", "prediction", *kinds],
        [
            (
                t + 1,
                "truth" if t < report.context_length else "prediction",
                f"{report.predictions[t]:.1e}",
                *(f"{report.states[t][kind]:.1e}" for kind in kinds),
            )
            for t in sorted(shown)
        ],
    )
    name, state = report.worst_state
    budget, state_budget = ("–" if math.isinf(one) else f"{one:.1e}" for one in (report.budget, report.state_budget))
    table(
        [f"{report.backend} against {report.yardstick}", "largest |difference|", "budget"],
        [
            ("predictions, step by step", f"{report.stepped:.1e}", budget),
            ("predictions, clip graph", f"{report.clip:.1e}", budget),
            ("predictions, rollout graph", f"{report.rollout:.1e}", budget),
            (f"final states, largest in {name}", f"{state:.1e}", state_budget),
        ],
    )
    if report.dssim is not None and report.dpsnr is not None:
        click.echo(f"quality lost: SSIM {report.dssim:+.1e}, PSNR {report.dpsnr:+.1e} dB")
