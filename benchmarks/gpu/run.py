"""Run of a plan: one process after the other, and a verdict on those that end badly."""

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
"""A process may take so many times its estimated time, and so many seconds more, before it is killed."""
Command = Callable[[Job], Sequence[str]]


@dataclass(frozen=True)
class End:
    """End of a process."""

    code: int | None
    """Exit code, negative for a signal; None where it was killed for its time."""
    limit_s: float
    """Time that it had."""
    last: str
    """Last line that it wrote."""

    def verdict(self) -> str | None:
        """Return why its row has no result; None where it ended well."""
        if self.code is None:
            return f"killed after {self.limit_s:.0f} s, the time it had; give more --seconds, or leave the row out"
        if self.code < 0:
            return f"its process ended by {signal.Signals(-self.code).name} ({self.last})"
        return None if self.code in (0, SPOILT) else f"its process ended with exit code {self.code} ({self.last})"


def worker_command(job: Job) -> list[str]:
    """Return the command of a worker."""
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
    """Run rows until all are decided or the time is over, and record each.

    After each process the rest is planned again, so that rows run for which there turned out to be time.

    Args:
        command: how a process is started, for tests.
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
    """Record the row at which a process ended badly, so that the rest can go on without it."""
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
    """Run a process with its own process group, pass its output on, and kill the group when its time is over."""
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
            os.killpg(process.pid, signal.SIGKILL)  # compilers that it started too, and whatever ended before them
        process.wait()
        reader.join(5)
    return End(code, limit_s, "".join(last))


def pass_on(stream: IO[str], last: deque[str]) -> None:
    """Write lines to stderr and keep the last."""
    with stream:
        for line in stream:
            if line.strip():
                last.append(line.strip()[:300])
            say(line.rstrip("\n"))


def say(line: str) -> None:
    """Write a line of progress."""
    with suppress(OSError):  # the terminal is gone; the run goes on, as nobody reading must not stop a worker
        print(line, file=sys.stderr, flush=True)
