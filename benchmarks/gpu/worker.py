"""Worker process that runs rows of one section and records each; `run.py` starts it."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import machine
from benchmarks.gpu.bench import Bench, Settings
from benchmarks.gpu.failures import SKIPPED, line_of, trace_of
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.results import Results
from benchmarks.gpu.sections import units

SPOILT = 75
"""Exit code after a failed row; the next rows need a new process.

A failed capture leaves PyTorch's allocator in its capture state, an illegal access makes the CUDA context unusable, and
an exhausted memory stays fragmented.
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Rows and limits of one worker process."""

    settings: dict[str, Any]
    """Result of `Settings.to_dict`."""
    file: str
    """Path of the result file."""
    names: tuple[str, ...]
    """Names of the rows, in order."""
    costs_s: tuple[float, ...]
    """Estimated time of each row (s)."""
    started: float
    """Time at which the parent started the process (s since the epoch)."""
    deadline: float
    """Time at which the parent kills the process (s since the epoch)."""

    def to_json(self) -> str:
        """Return the job as JSON, the argument of the process."""
        return json.dumps(asdict(self))


def run(job: Job, listed: Sequence[Unit], bench: Bench, results: Results) -> int:
    """Run the rows of a job until one fails or no time is left; return the exit code."""
    found, parent, ready = {unit.name: unit for unit in listed}, os.getppid(), False
    for name, cost_s in zip(job.names, job.costs_s, strict=True):
        if time.time() + cost_s > job.deadline or os.getppid() != parent:
            return 0  # the parent, if it still runs, plans the other rows again
        unit = found[name]
        results.running(unit.section, unit.row)
        if not ready:
            results.data["starts"].append(round(time.time() - job.started, 1))
            ready = True
        print(f"{name} …", flush=True)
        started = time.monotonic()
        try:
            results.done(unit.section, unit.row, unit.work())
        except SKIPPED as error:
            results.skip(name, line_of(error))
            print(f"{name}: skipped, {line_of(error)}", flush=True)
        except Exception as error:
            results.fail(name, line_of(error), trace_of(error))
            print(f"{name}: FAILED, {line_of(error)}", flush=True)
            return SPOILT
        finally:
            results.data["seconds"][name] = round(time.monotonic() - started, 1)
            results.data.pop("running", None)
            results.write()
        bench.free()
    return 0


def main() -> int:
    """Run the job in the first argument."""
    fields = json.loads(sys.argv[1])
    job = Job(**fields | {"names": tuple(fields["names"]), "costs_s": tuple(fields["costs_s"])})
    bench, results = Bench(Settings.from_dict(job.settings)), Results.read(Path(job.file))
    environment = results.data["environment"]
    if bench.on_gpu and "gpu" not in environment:
        environment |= machine.gpu()
    with torch.no_grad():
        return run(job, units(bench), bench, results)


if __name__ == "__main__":
    sys.exit(main())
