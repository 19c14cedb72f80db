"""Overhead of the scheduler of many streams, and the gain from stepping streams together.

    python -m benchmarks.scheduler [--size demo|full] [--backend onnxruntime] [--streams 8]

Three sides process the same pictures of several streams, in turn:

- `loop`: a plain loop over `backend.step`, with all streams in one batch;
- `scheduled`: `predictor.streams()`, with the pictures pushed to its queues;
- `one_by_one`: a plain loop with a state and a step for each stream.

The first two make the same steps, so their difference is the overhead of the scheduler: copies of pictures, queues, a
thread, checks and counters. It is also measured on a backend that computes nothing. Times are elapsed times and
processor times, which other processes disturb less. Writes
benchmarks/results/scheduler_SIZE_BACKEND_STREAMS_THREADS.json.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import compare, model_of, save, size_option
from e3d_deploy import contract, runtime
from e3d_deploy.config import ModelConfig
from e3d_deploy.export.bundle import export
from e3d_deploy.export.graph.statistics import statistics
from e3d_deploy.measure.roofline import measure
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Frame


def bundle_of(size: str, folder: Path) -> Path:
    """Export the demo model or a full-size model for any number of streams; return the bundle's folder."""
    source = model_of(size, folder)
    return export(source, folder / f"{size}.e3d", batch=None)


class Nothing:
    """Backend that computes nothing."""

    name, pads = "nothing", False

    def __init__(self, streams: int, config: ModelConfig) -> None:
        self.sizes = (1, streams) if streams > 1 else (1,)
        self.predictions = np.zeros(contract.frame(config, streams).shape, np.float32)

    def initial_state(self, batch: int | None = None) -> int:
        return batch or 1

    def gather(self, rows: Sequence[tuple[int, int]]) -> int:
        return len(rows)

    def step(self, frame: Frame, state: int) -> tuple[NDArray[np.float32], int]:
        return self.predictions[: len(frame)], state

    def close(self) -> None:
        pass


def own_cost(config: ModelConfig, streams: int, steps: int = 500) -> float:
    """Return the processor time per step of the scheduler and its pushes (µs); the median of seven measurements."""
    backend: Any = Nothing(streams, config)
    picture = np.zeros((*config.image_size, config.channels), np.uint8)
    with (
        runtime.Predictor(config, backend, identity="nothing") as predictor,
        predictor.streams(renewal="none", max_streams=streams, max_wait_ms=1000, queue_length=steps) as pool,
    ):
        slots, costs = [pool.open() for _ in range(streams)], []
        for _ in range(7):
            started = time.process_time()
            for _ in range(steps):
                for slot in slots:
                    slot.push(picture)
            for slot in slots:
                slot.wait()
            costs.append(1e6 * (time.process_time() - started) / steps)
    return float(np.median(costs))


@click.command()
@size_option("demo")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle of the model of --size, exported for any number of streams.",
)
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend to measure.")
@click.option(
    "--streams",
    default=8,
    show_default=True,
    help="Number of streams; the backend must have a step of this batch size.",
)
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=41, show_default=True, help="Number of rounds; each side is timed once per round.")
@click.option("--length", default=3, show_default=True, help="Pictures per stream in each timed call.")
def main(size: str, bundle: Path | None, backend: str, streams: int, threads: int, rounds: int, length: int) -> None:
    """Measure the overhead of the scheduler and the gain from batching."""
    with (
        tempfile.TemporaryDirectory() as name,
        runtime.load(path := bundle or bundle_of(size, Path(name)), backend, threads=threads) as predictor,
        predictor.streams(renewal="none", max_streams=streams, max_wait_ms=1000, queue_length=length) as pool,
    ):
        shape = (length, streams, *predictor.config.image_size, predictor.config.channels)
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        slots = [pool.open() for _ in range(streams)]
        states = {"together": predictor.backend.initial_state(streams)}
        states |= {f"alone {number}": predictor.backend.initial_state(1) for number in range(streams)}

        def loop() -> None:
            for seen in pictures:
                _, states["together"] = predictor.backend.step(seen, states["together"])

        def scheduled() -> None:
            for seen in pictures:
                for slot, picture in zip(slots, seen, strict=True):
                    slot.push(picture)
            for slot in slots:
                slot.wait()

        def one_by_one() -> None:
            for seen in pictures:
                for number in range(streams):
                    key = f"alone {number}"
                    _, states[key] = predictor.backend.step(seen[number : number + 1], states[key])

        sides = {"loop": loop, "scheduled": scheduled, "one_by_one": one_by_one}
        clocks = {"by_the_clock": time.perf_counter, "of_the_processor": time.process_time}
        results = {name: compare(sides, rounds=rounds, calls=1, clock=clock) for name, clock in clocks.items()}
        stats, opened = pool.stats(), Bundle.open(path)
        flop = statistics(opened.onnx("step"), opened.entry("step")).flop * length * streams
    save(
        f"scheduler_{size}_{backend}_{streams}_{threads}",
        {
            "what": f"{length} pictures for each of {streams} streams, {size} model, {backend}",
            **{name: {"sides": result, **ratios(result, flop)} for name, result in results.items()},
            "matmul_gflops": round(measure(threads).gflops, 1),
            "scheduler_us_per_step": round(own_cost(opened.config, streams), 1),
            "batch_sizes": {str(count): steps for count, steps in stats["batch_sizes"].items() if steps},
            "rows_gathered": stats["rows_gathered"],
        },
        threads=threads,
    )


def ratios(sides: dict[str, Any], flop: int) -> dict[str, Any]:
    """Return the figures that compare the three sides.

    Args:
        flop: operations of the network in each timed call.

    Returns:
        `overhead`, the extra time of `scheduled` as a share of the time of `loop`; `batching_gain`, the time of
        `one_by_one` divided by that of `loop`; and `gflops`, the rates of the two loops (GFLOP/s).
    """
    return {
        "gflops": {name: round(flop / sides[name]["median_ms"] / 1e6, 1) for name in ("loop", "one_by_one")},
        "overhead": round(1 / sides["scheduled"]["speedup_over_loop"] - 1, 4),
        "batching_gain": round(1 / sides["one_by_one"]["speedup_over_loop"], 3),
    }


if __name__ == "__main__":
    main()
