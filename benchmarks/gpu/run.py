"""Run of a plan in successive worker processes, with records of the rows at which a process fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from benchmarks.gpu import machine
from benchmarks.gpu.bench import Settings
from benchmarks.gpu.plan import Costs, Unit, plan, process_s
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import SPOILT, Job

SLACK, SLACK_S = 3, 30
"""Time limit of a process: SLACK times its estimated time, plus SLACK_S (s)."""
Command = Callable[[Job], Sequence[str]]
"""Function that returns the command line of the worker for a job."""


@dataclass(frozen=True)
class End:
    """End of a process."""

    code: int | None
    """Exit code; negative for a signal, None if the process was killed at its time limit."""
    limit_s: float
    """Time limit (s)."""
    last: str
    """Last line of its output."""

    def verdict(self) -> str | None:
        """Return the reason why the running row has no result; None if the process succeeded."""
        if self.code is None:
            return f"killed after {self.limit_s:.0f} s, its time limit; give more --seconds, or leave the row out"
        if self.code < 0:
            return f"its process ended by {signal.Signals(-self.code).name} ({self.last})"
        return None if self.code in (0, SPOILT) else f"its process ended with exit code {self.code} ({self.last})"


def worker_command(job: Job) -> list[str]:
    """Return the command line of the worker for a job."""
    return [sys.executable, "-m", "benchmarks.gpu.worker", job.to_json()]


def run(
    settings: Settings,
    units: Sequence[Unit],
    results: Results,
    *,
    seconds: float,
    costs: Costs,
    command: Command = worker_command,
) -> None:
    """Run rows until all have a result, were skipped or failed, or the time is over (s); record each.

    The remaining rows are planned again after each process, so that time that was saved is used.

    Args:
        command: returns the command line of a worker; tests replace it.
    """
    deadline = time.time() + seconds
    for unit in units:
        if unit.absent:
            results.skip(unit.name, unit.absent)
    pending = [unit for unit in units if not unit.absent]
    while processes := plan(pending, deadline - time.time(), costs).processes():
        processed, started = processes[0], time.time()
        limit_s = min(deadline - started, SLACK * process_s(processed, costs) + SLACK_S)
        job = Job(
            settings=settings.to_dict(),
            file=str(results.path.absolute()),
            names=tuple(unit.name for unit in processed),
            costs_s=tuple(costs.of(unit) for unit in processed),
            started=started,
            deadline=started + limit_s,
        )
        say(f"== {processed[0].section}, {len(processed)} rows ({deadline - started:.0f} s left)")
        results.write()
        end = run_process(command(job), limit_s)
        results.take_over()
        judge(results, processed, end)
        if settings.on_gpu:
            results.data["after"][processed[0].section] = machine.clocks()
        results.write()
        pending = [unit for unit in pending if not results.decided(unit.section, unit.row)]
    for unit in pending:
        results.skip(unit.name, f"no time was left for it (about {costs.of(unit):.0f} s)")
    results.write()


def judge(results: Results, units: Sequence[Unit], end: End) -> None:
    """If a process failed, record the running row as failed, so that the other rows can run."""
    at = results.data.pop("running", None)
    left = [unit for unit in units if not results.decided(unit.section, unit.row)]
    verdict = end.verdict()
    if verdict is None and len(left) == len(units) and not at:
        verdict = "its process ended without running it"
    if verdict and left:
        name = at or left[0].name
        results.fail(name, verdict)
        say(f"{name}: FAILED, {verdict}")


def run_process(command: Sequence[str], limit_s: float) -> End:
    """Run a process in its own group and forward its output; kill the group at its end or at the time limit (s)."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=1)
    reader = threading.Thread(target=pass_on, args=(process.stdout, last), daemon=True)
    reader.start()
    code = None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            # This also kills children such as compilers, even if their parent has ended.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
    return End(code, limit_s, "".join(last))


def pass_on(stream: IO[str], last: deque[str]) -> None:
    """Write the lines of a stream to stderr, and append non-empty lines to `last`."""
    with stream:
        for line in stream:
            if line.strip():
                last.append(line.strip()[:300])
            say(line.rstrip("\n"))


def say(line: str) -> None:
    """Print a progress line to stderr."""
    with suppress(OSError):  # a lost terminal must not stop the run
        print(line, file=sys.stderr, flush=True)
