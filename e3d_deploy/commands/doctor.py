"""`e3d doctor`: finds faults of the installation, and shows which backends run on this machine."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import PATH, THREADS, Finite, json_option
from e3d_deploy.commands._output import as_json, table, verdict, warn, working
from e3d_deploy.errors import BackendUnavailable

if TYPE_CHECKING:
    from e3d_deploy.doctor import Fault
    from e3d_deploy.doctor.bundle import BundleReport


@click.command(cls=GroupedCommand, examples=("e3d doctor", "e3d doctor --bundle small.e3d --fps 25"))
@option("--bundle", type=PATH, help="Bundle to check: which backend runs it here, and how many streams.")
@option("--again", is_flag=True, help="Select the backend again instead of reusing the last choice; requires --bundle.")
@option(
    "--fps",
    type=Finite(min=0, max=100_000, min_open=True),
    metavar="FPS",
    help="Frames per second of each stream; requires --bundle.",
    show_default="30",
)
@THREADS
@json_option()
def doctor(bundle: Path | None, again: bool, fps: float | None, threads: int | None, json_: bool) -> None:
    """Find faults of the installation, and check a bundle.

    Shows the backends and libraries of this machine, and the command that mends each fault or installs each missing
    library. Exits with 4 if a fault stops an installed backend.
    """
    from e3d_deploy.doctor import examine, find_faults

    for name, given in {"--again": again, "--threads": threads, "--fps": fps}.items():
        if given and bundle is None:
            raise click.UsageError(f"{name} requires --bundle; give both, or neither")
    with working("loading the libraries"):
        faults = find_faults()
    found = examine(faults)
    report = None
    if bundle is not None:
        try:
            report = _examine_bundle(bundle, threads=threads, again=again, fps=fps)
        except BackendUnavailable:
            _show_faults(faults)  # likely the cause
            raise
    if json_:
        as_json({**found, **(report.to_json() if report else {})})
    else:
        _show(found)
        if report:
            _show_bundle(bundle, report)
    _conclude(found, faults)


def _examine_bundle(bundle: Path, **options: Any) -> "BundleReport":
    from e3d_deploy.doctor.bundle import examine_bundle

    with working("trying the backends") as progress:
        return examine_bundle(bundle, progress=progress, **options)


def _show(found: Mapping[str, Any]) -> None:
    """Print the machine, the backends and the libraries."""
    machine = found["machine"]
    click.echo(f"e3d_deploy {found['e3d_deploy']}, Python {found['python']}, {machine['system']}")
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores, NVIDIA driver: {'yes' if machine['nvidia_driver'] else 'no'}, "
        f"GPU: {machine['gpu'] or '–'}"
    )
    click.echo(f"telemetry: {found['contacts']}")
    click.echo(f"cache: {found['cache']}\n")
    table(["backend", "state"], _states(found), left=2)
    click.echo()
    installed, missing = defaultdict(list), []
    for one in found["libraries"]:
        if one["version"]:
            installed[one["extra"]].append(f"{one['library']} {one['version']}")
        else:
            missing.append((one["library"], one["gives"], one["get"]))
    if installed:
        table(
            ["extra", "installed libraries"], [(extra, ", ".join(names)) for extra, names in installed.items()], left=2
        )
    if missing:
        click.echo()
        table(["not installed", "provides", "install with"], missing, left=3)


def _states(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the backends with their states, those that are ready first."""
    from e3d_deploy.runtime.backends.specs import BACKENDS

    stopped = {name: fault["code"] for fault in found["faults"] for name in fault["stops"]}
    ready = [(name, "ready") for name, there in found["backends"].items() if there]
    others = [
        (name, f"stopped by the fault {stopped[name]}" if name in stopped else f"not ready; {BACKENDS[name].remedy}")
        for name, there in found["backends"].items()
        if not there
    ]
    return ready + others


def _show_bundle(bundle: Path | None, report: "BundleReport") -> None:
    """Print the candidates of `auto`, and the number of streams."""
    click.echo()
    table(
        ["backend", "ms per step", "reason"],
        [
            (one.backend, "–" if one.step_ms is None else f"{one.step_ms:.2f}", one.reason)
            for one in report.choice.tried
        ],
        left=3,
    )
    click.echo(f"auto selects {report.choice.backend} for {bundle}")
    for line in streams_lines(report):
        click.echo(line)


def streams_lines(report: "BundleReport") -> list[str]:
    """Describe how many streams hold the frame rate, and what was measured."""
    streams = report.streams
    (answer,), first = streams.answers, streams.curves[0].points[0]
    number = f"at least {answer.streams}" if answer.at_least else str(answer.streams)
    at = answer.at or answer.best
    verb = "stream holds" if number == "1" else "streams hold"
    steps = sum(first.step_sizes)
    lines = [
        f"{number} {verb} {streams.fps:g} frames/s: with {at.streams}, p99 is {at.p99_ms:.2f} ms of "
        f"{streams.target_p99_ms:.2f} ms ({at.rounds} rounds timed)",
        f"one stream: median {first.p50_ms:.2f} ms per frame, {steps} step{'s' if steps > 1 else ''} per frame "
        f"(renewal {streams.renewal})",
    ]
    if report.load_average is not None and report.load_average > (os.cpu_count() or 1):
        lines.append(
            f"the machine is busy (load average {report.load_average:.1f}), so it may hold more when it is idle"
        )
    return lines


def _conclude(found: Mapping[str, Any], faults: "Sequence[Fault]") -> None:
    """Print the faults, the warnings and the verdict, and exit with 4 if a fault stops an installed backend."""
    ready = [name for name, there in found["backends"].items() if there]
    _show_faults(faults)
    for warning in found["warnings"][: len(found["warnings"]) - len(faults)]:
        warn(warning)
    names = f"installed backends: {', '.join(ready)}; `e3d verify BUNDLE` checks their results"
    stopped = sorted({name for fault in faults for name in fault.stops})
    if stopped:
        remedy = "run the command below each fault"
        verdict(False, f"faults stop {', '.join(stopped)}", remedy=remedy, failure=BackendUnavailable)
    if not ready:
        from e3d_deploy.runtime.backends.specs import RECOMMENDED, find

        warn(f"no backend is installed; {find(RECOMMENDED).remedy}")
    elif faults:
        warn(f"{'1 fault' if len(faults) == 1 else f'{len(faults)} faults'}; {names}")
    else:
        verdict(True, names)


def _show_faults(faults: "Sequence[Fault]") -> None:
    """Print each fault, and below it the command that mends it."""
    for fault in faults:
        click.echo(f"\n{fault.code}: {fault.what}\n    {fault.command}", err=True)
    if faults:
        click.echo(err=True)
