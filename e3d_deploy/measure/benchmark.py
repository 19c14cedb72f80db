"""Benchmark of the speed, accuracy and memory of backends, which are timed in turn in one process.

docs/benchmark.md lists the fields of the result.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import ConfigError
from e3d_deploy.measure.environment import environment
from e3d_deploy.measure.memory import peak_alone
from e3d_deploy.measure.results import Accuracy, BenchmarkResult, Row
from e3d_deploy.measure.tasks import WHAT, Pictures, check_what, make_task
from e3d_deploy.measure.timing import REPEATS, Block, Runner, blocks_in_turn, median_interval, summary
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.renewal import renewal_for
from e3d_deploy.runtime.verify import verify
from e3d_deploy.turns import Clock


def benchmark(
    bundle: Bundle,
    backends: Sequence[Backend],
    what: Sequence[str] = ("step",),
    *,
    threads: int | None = None,
    seconds: float = 1.0,
    repeats: int = REPEATS,
    play: Callable[[], Pictures] | None = None,
    renewal: str | None = None,
    memory: bool = False,
    progress: Notify = silent,
    clock: Clock = time.perf_counter,
) -> BenchmarkResult:
    """Measure the speed and accuracy of backends.

    The backends are timed in turn, one block of calls each. The speed-up is the median of the ratios within a turn.

    Args:
        backends: opened backends; all later ones are compared with the first.
        what: tasks to time, from `tasks.WHAT`.
        threads: number of threads with which the backends were opened; recorded in the result.
        seconds: minimum length of a block.
        repeats: number of blocks per backend.
        play: function that opens the video for `end-to-end`; None to read pictures from memory without decoding.
        renewal: renewal of the stream that `stream` times; None for the default of the bundle.
        memory: also measure the peak memory of each backend, in a separate process.

    Raises:
        ConfigError: There is no backend or no task, a task is unknown, or a name is given twice.
        BundleError: The bundle lacks a graph that a task needs.
    """
    check_what(what)
    if not backends:
        raise ConfigError("backends: got none, expected at least one")
    names = [backend.name for backend in backends]
    for given in (names, what):
        if len(set(given)) < len(given):
            raise ConfigError(f"{', '.join(given)}: a name is given twice; give each name once")
    on_host = {backend.name: backend.device is None for backend in backends}
    accuracy = {}
    for backend in backends:
        progress(f"verifying {backend.name}")
        accuracy[backend.name] = _accuracy(bundle, backend)
    peaks: dict[str, int | None] = dict.fromkeys(names)
    for name in names if memory else []:
        progress(f"measuring the memory of {name}")
        peaks[name] = peak_alone(bundle, name, what, renewal, threads=threads)
    rows = []
    for one in what:
        tasks = [make_task(one, bundle, side, play, renewal) for side in backends]
        runners = [Runner(f"{one} of {side.name}", task, clock) for side, task in zip(backends, tasks, strict=True)]
        blocks = blocks_in_turn(runners, seconds=seconds, repeats=repeats, progress=progress)
        for name, runner, done in zip(names, runners, blocks, strict=True):
            rows.append(
                _row(
                    runner,
                    done,
                    blocks[0],
                    batch=bundle.batch,
                    what=one,
                    backend=name,
                    on_host=on_host[name],
                    peak_bytes=peaks[name],
                    accuracy=accuracy[name],
                )
            )
    return BenchmarkResult(
        what={one: WHAT[one] for one in what},
        decodes=play is not None,
        renewal=str(renewal_for(bundle.card, bundle.context_length, renewal)) if "stream" in what else None,
        compared_with=names[0],
        repeats=repeats,
        block_seconds=seconds,
        confidence=median_interval(range(repeats))[2],
        bundle={
            "path": bundle.path.name,
            "digest": bundle.digest,
            "batch": bundle.batch,
            "precision": bundle.precision,
        },
        rows=tuple(rows),
        environment=environment(threads),
    )


def _row(
    runner: Runner,
    blocks: Sequence[Block],
    first: Sequence[Block],
    *,
    batch: int,
    what: str,
    backend: str,
    on_host: bool,
    peak_bytes: int | None,
    accuracy: Accuracy,
) -> Row:
    """Return the result of one task on one backend.

    Args:
        blocks: blocks of the backend.
        first: blocks of the first backend in the same turns, for the speed-up.
    """
    timed, steps = summary(blocks), runner.task.steps
    frames = steps if runner.task.frames is None else runner.task.frames
    calls_per_second = 1000 / timed.median_ms
    ratios = [theirs.median / ours.median for theirs, ours in zip(first, blocks, strict=True)]
    return Row(
        what=what,
        backend=backend,
        on_host=on_host,
        timing=timed,
        steps_per_call=steps,
        frames_per_call=frames,
        ms_per_step=timed.median_ms / steps if steps else None,
        ms_per_frame=timed.median_ms / frames,
        frames_per_second=batch * frames * calls_per_second,
        sequences_per_second=batch * calls_per_second if runner.task.forecasts else None,
        speedup=float(np.median(ratios)),
        warm_up_calls=runner.warm_up_calls,
        settled=runner.settled,
        peak_bytes=peak_bytes,
        accuracy=accuracy,
    )


def _accuracy(bundle: Bundle, backend: Backend) -> Accuracy:
    found = verify(bundle, backend)
    report = found.to_dict()  # values that are not finite are None
    return Accuracy(
        max_abs_difference=report["worst"],
        dssim=report["dssim"],
        dpsnr_db=report["dpsnr"],
        within_budget=found.passed,
    )
