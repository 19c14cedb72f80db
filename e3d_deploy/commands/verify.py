"""`e3d verify`: whether a backend computes what PyTorch computes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BACKEND, BUNDLE, LAYOUT, MOST_FRAMES, PATH, THREADS, Count, json_option
from e3d_deploy.commands._output import as_json, check_picture, table, verdict, warn, working
from e3d_deploy.files import write_file
from e3d_deploy.policies import PICTURE_RANGE

if TYPE_CHECKING:
    from e3d_deploy.export.precision.why import Finding
    from e3d_deploy.runtime import Bundle
    from e3d_deploy.runtime.backends.protocol import Backend
    from e3d_deploy.runtime.choose import Choice
    from e3d_deploy.runtime.verify import Report


@click.command()
@BUNDLE
@BACKEND
@click.option(
    "--against",
    type=click.Choice(["auto", "torch", "reference"]),
    default="auto",
    help="PyTorch, or what it computed at export; auto takes PyTorch where it is installed and not itself verified.",
)
@click.option("--clip", type=PATH, help="Another clip than the reference; needs PyTorch.")
@LAYOUT
@click.option("--steps", type=Count(MOST_FRAMES), help="Go on for so many, to see the drift grow; needs PyTorch.")
@THREADS
@click.option("--picture", type=PATH, help="Draw the drift into this PNG.")
@json_option("The report as JSON.")
def verify(
    bundle: Path,
    backend: str,
    against: str,
    clip: Path | None,
    layout: str | None,
    steps: int | None,
    threads: int | None,
    picture: Path | None,
    json_: bool,
) -> None:
    """Prove that a backend computes what PyTorch computes, over a whole rollout."""
    from contextlib import ExitStack

    from e3d_deploy import frames
    from e3d_deploy.bundle.folder import record_verification
    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.data.form import Form
    from e3d_deploy.runtime.backends.registry import open_backend
    from e3d_deploy.runtime.backends.specs import YARDSTICK, find, has_libraries
    from e3d_deploy.runtime.verify import verify as verify_backend

    check_picture(picture, clip, bundle)
    opened = open_bundle(bundle)
    config = opened.config
    given = None
    if clip is None and layout is not None:
        raise click.UsageError("--layout is of --clip: give both, or neither.")
    if clip is not None:
        length = opened.context_length + opened.horizon
        form = Form.of(config, opened.card, layout)
        pictures = read_clips(clip, form, most=length, least=opened.context_length, count=1).frames[0]
        given = frames.to_frames(pictures, image_size=config.image_size, channels=config.channels, name=str(clip))
    with ExitStack() as stack, working(f"verifying {bundle}"):
        choice = None
        if backend == "auto":
            candidate, choice = open_auto(opened, threads)
        else:
            candidate = open_backend(opened, backend, threads=threads)
        stack.enter_context(candidate)
        if against == "auto":
            # PyTorch agrees with itself; what it gave at export, perhaps elsewhere, is the better question.
            itself = candidate.name == YARDSTICK and clip is None and steps is None
            against = "torch" if has_libraries(find(YARDSTICK)) and not itself else "reference"
        yardstick = None
        if against == "torch":
            yardstick = stack.enter_context(open_backend(opened, YARDSTICK, threads=threads))
        report = verify_backend(opened, candidate, yardstick, given, steps=steps)
        computed = find(candidate.name).computed
        ran = None if computed is None else computed(candidate)
        findings = [] if report.passed else why(opened, candidate.name, threads)
    if given is None and not report.has_no_verdict:
        record_verification(opened, report.to_dict())
    if picture is not None:
        from e3d_deploy.measure import plots

        write_file(picture, plots.drift(report))
    if json_:
        why_off = {} if report.passed else {"why": [one.to_dict() for one in findings]}
        as_json({**report.to_dict(), "computed": ran, "choice": choice, **why_off})
    else:
        show_report(report)
        if ran is not None:
            click.echo(f"products of the step, as {candidate.name} runs them: {products(ran)}")
        show_findings(findings)
    if report.has_no_verdict:
        warn(f"no verdict: {report.unproved}")
        return
    mend = "try another backend, or export the model again"
    if findings:
        first = findings[0]
        mend = f"first off is {first.layer} ({first.cause}); export again with {first.advice}"
    verdict(report.passed, judged(report), remedy=f"furthest at {report.furthest}; {mend}")


def open_auto(bundle: "Bundle", threads: int | None) -> tuple["Backend", "Choice | None"]:
    """Open the backend that `load` takes, and say why; where it takes none, the preferred one that opens.

    Raises:
        BackendUnavailable: no backend opens.
    """
    from e3d_deploy.errors import BackendUnavailable
    from e3d_deploy.runtime.choose import choose, open_first

    try:
        backend, choice = choose(bundle, threads=threads)
    except BackendUnavailable:
        # None agrees in the first steps: a whole report of one tells more than that.
        backend = open_first(bundle, threads=threads)
        click.echo(f"auto takes none here; verifying {backend.name}, the first that opens", err=True)
        return backend, None
    click.echo(f"auto takes {choice.backend}: {choice.reason}", err=True)
    return backend, choice


def products(counts: Mapping[str, int]) -> str:
    """Counts of products by their precision, the most frequent first: `21 in bf16, 4 in fp32`."""
    ordered = sorted(counts.items(), key=lambda one: -one[1])
    return ", ".join(f"{count} in {policy}" for policy, count in ordered)


def judged(report: "Report") -> str:
    """A report in one line: what was found of what its budget allows."""
    who = f"{report.backend} against {report.yardstick}"
    if math.isinf(report.budget):
        lost = (("SSIM", report.dssim, report.dssim_budget, ""), ("PSNR", report.dpsnr, report.dpsnr_budget, " dB"))
        words = [
            f"{name} lost {'no number' if found is None else format(found, '.1e')} of {allowed:.1e}{unit}"
            for name, found, allowed, unit in lost
            if allowed is not None
        ]
        off = f"predictions off by {report.worst:.1e} of {PICTURE_RANGE:g}"
        return f"{who} in {report.precision}: {', '.join(words)}, {off}"
    line = f"{who}: predictions {report.worst:.1e} of {report.budget:.1e}, states {report.worst_state[1]:.1e}"
    return line if math.isinf(report.state_budget) else f"{line} of {report.state_budget:.1e}"


def why(bundle: "Bundle", backend: str, threads: int | None) -> list["Finding"]:
    """Return the first errors in the step graph; empty if the backend or a missing library rules out the search."""
    from e3d_deploy.libraries import is_importable
    from e3d_deploy.runtime.backends.specs import find

    session = find(backend).explained_by
    if session is None or not is_importable("onnx") or not is_importable("onnxruntime"):
        return []
    from e3d_deploy.export.precision.why import explain

    return explain(bundle, backend, native=session == "session", threads=threads)


def show_findings(findings: Sequence["Finding"]) -> None:
    """Why a bundle is over its budget."""
    if findings:
        table(
            ["first off", "layer", "cause", "step", "error", "largest", "what mends it"],
            [
                (one.node, one.layer, one.cause, one.step, f"{one.error:.1e}", f"{one.largest:.1e}", one.advice)
                for one in findings
            ],
            left=3,
        )


def show_report(report: "Report") -> None:
    """A report of `verify` as tables."""
    kinds = ["hidden", "cell", "memory"] if report.states else []
    shown = {*range(report.steps), *range(report.steps, len(report.predictions), 10), len(report.predictions) - 1}
    table(
        ["step", "saw", "prediction", *kinds],
        [
            (
                t + 1,
                "truth" if t < report.context_length else "itself",
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
            (f"final states, most {name}", f"{state:.1e}", state_budget),
        ],
    )
    if report.dssim is not None and report.dpsnr is not None:
        click.echo(f"lost against the truth: SSIM {report.dssim:+.1e}, PSNR {report.dpsnr:+.1e} dB")
