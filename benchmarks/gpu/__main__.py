"""Command line of the GPU benchmark: reads options, plans and runs rows, prints the results."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

import benchmarks.gpu
from benchmarks.gpu import machine
from benchmarks.gpu.bench import Bench, Settings
from benchmarks.gpu.plan import QUICK_CPU_S, Costs, Unit, described, plan, seconds
from benchmarks.gpu.report import table
from benchmarks.gpu.results import Results
from benchmarks.gpu.run import run, say
from benchmarks.gpu.sections import units

FAILED, WRONG, NO_GPU = 1, 3, 4
"""Exit codes in addition to 0, 2 (invalid options) and 128 plus the number of the signal that ended the run."""


class Interrupted(BaseException):
    """Raised when a signal ends the run; its argument is the signal's number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    settings = Settings(device=options.device, quick=options.quick, batches=options.batches, bundles=options.bundles)
    listed = units(Bench(settings))
    try:
        chosen = choose(listed, names(options.sections), names(options.rows))
        costs = Costs.read(options.costs) if options.costs else estimates(settings)
    except ValueError as error:
        parser.error(str(error))
    if options.out.is_dir() or any(folder.exists() and not folder.is_dir() for folder in options.out.parents):
        parser.error(f"--out: {options.out} is a folder, or one of its parents is a file; give the path of a file")
    if options.plan:
        print(described(plan(chosen, options.seconds, costs), options.seconds, costs))
        return 0
    if settings.on_gpu and (reason := machine.no_gpu()):
        say(f"PyTorch {torch.__version__} finds no GPU ({reason}); test the script on a CPU with --device cpu --quick")
        return NO_GPU
    results = Results(options.out)
    results.data["environment"] = machine.host() | {"settings": settings.to_dict(), "model": settings.config.to_dict()}
    if settings.on_gpu:
        results.data["environment"]["in_use"] = in_use = machine.in_use()
        say(f"warning: {in_use['warning']}" if "warning" in in_use else "no other program uses the GPU")
    code = 0
    try:
        with signals():
            run(settings, chosen, results, seconds=options.seconds, costs=costs)
    except Interrupted as error:
        code = 128 + int(error.args[0])
        results.take_over()
        results.data["interrupted"] = signal.Signals(error.args[0]).name
        results.write()
    print(table(results.data))
    print(f"\nresults: {options.out}")
    return code or (WRONG if results.wrong() else FAILED if results.data["failed"] else 0)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=(benchmarks.gpu.__doc__ or "").split("\n")[0]
    )
    folder = Path(os.environ.get("OUT") or Path(__file__).parents[1] / "results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and short rounds; on a CPU also a tiny model")
    parser.add_argument(
        "--seconds", type=seconds, default=540, help="time limit of the whole run (s); rows that do not fit are skipped"
    )
    parser.add_argument(
        "--sections", default="", help="names of sections or their beginnings, separated by commas; default: all"
    )
    parser.add_argument(
        "--rows",
        default="",
        help="names of rows or their beginnings, separated by commas; default: all; the roofline is always run",
    )
    parser.add_argument("--batches", type=batches, default="1,8,32", help="numbers of streams, separated by commas")
    parser.add_argument("--bundles", type=Path, help="folder made by python -m benchmarks.gpu.bundles")
    parser.add_argument("--costs", type=Path, help="earlier result file, whose times replace the estimates of the plan")
    parser.add_argument("--plan", action="store_true", help="print which rows would run and which would not, and exit")
    parser.add_argument("--out", type=Path, default=folder / "gpu.json", help="result file")
    return parser


def batches(text: str) -> tuple[int, ...]:
    """Parse numbers of streams, separated by commas.

    Raises:
        ValueError: one of them is not an integer of 1 or more.
    """
    found = tuple(dict.fromkeys(int(one) for one in text.split(",")))
    if min(found) < 1:
        raise ValueError(text)
    return found


def names(text: str) -> list[str]:
    """Split text at commas; return the names without spaces and empty ones."""
    return [one.strip() for one in text.split(",") if one.strip()]


def estimates(settings: Settings) -> Costs:
    """Return the estimates of times for these settings."""
    tiny = settings.quick and not settings.on_gpu
    return Costs(start_s=QUICK_CPU_S, flat_s=QUICK_CPU_S) if tiny else Costs()


def choose(listed: Sequence[Unit], sections: Sequence[str], rows: Sequence[str]) -> list[Unit]:
    """Return the units of the chosen sections and rows.

    Args:
        sections: beginnings of the names of sections; empty for all.
        rows: beginnings of the names of rows; empty for all. Rows of the roofline are always returned.

    Raises:
        ValueError: no section or row has a name that begins like this.
    """
    known = {"section": [unit.section for unit in listed], "row": [unit.row for unit in listed]}
    for kind, wanted in (("section", sections), ("row", rows)):
        for name in wanted:
            if not any(one.startswith(name) for one in known[kind]):
                raise ValueError(f"--{kind}s: got {name!r}, expected {', '.join(dict.fromkeys(known[kind]))}")
    return [
        unit
        for unit in listed
        if (not sections or unit.section.startswith(tuple(sections)))
        and (not rows or unit.section == "roofline" or unit.row.startswith(tuple(rows)))
    ]


@contextmanager
def signals() -> Iterator[None]:
    """Raise `Interrupted` in the block on SIGINT, SIGTERM and SIGHUP, so that the worker is ended first."""

    def stop(number: int, _: FrameType | None) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)  # a second signal must not interrupt the end of the worker
        raise Interrupted(number)

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(kind, stop) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


if __name__ == "__main__":
    sys.exit(main())
