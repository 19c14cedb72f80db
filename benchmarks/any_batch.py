"""Compare a bundle for any number of streams with a bundle for one stream, when both follow one stream.

    python -m benchmarks.any_batch [--size demo|full] [--rounds 61] [--openings 9]

Steps of the two bundles are timed in turn in one process, for each backend and number of threads. The time from opening
a bundle to the first forecast frame is measured in new processes, in turn. Judge by processor time, which other
processes disturb less; elapsed time is recorded next to it. Writes benchmarks/results/any_batch_SIZE.json.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import compare, model_of, save
from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.export.bundle import export
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend

BACKENDS, THREADS = ("onnxruntime", "openvino"), (1, 2)
CALLS = {"demo": 10, "full": 2}
"""Number of steps in a block, by size of the model."""
FIRST = """
import sys, time
import numpy as np
import e3d_deploy.runtime as e3d
started = time.perf_counter(), time.process_time()
stream = e3d.load(sys.argv[1], sys.argv[2], threads=1).stream(renewal="none")
stream.push(np.zeros((64, 64, 1), np.uint8))
stream.predict(1)
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def bundles(size: str, folder: Path) -> dict[str, Path]:
    """Export the model twice: for one stream and for any number of streams."""
    source = model_of(size, folder)
    return {name: export(source, folder / f"{name}.e3d", batch=batch) for name, batch in (("one", 1), ("any", None))}


def stepper(backend: Backend, config: ModelConfig) -> Callable[[], None]:
    """Return a function that steps one stream whose ring is full."""
    frame = np.random.default_rng(0).random(contract.frame(config).shape, np.float32)
    state = backend.initial_state(1)

    def step() -> None:
        nonlocal state
        _, state = backend.step(frame, state)

    for _ in range(config.history_length):
        step()
    return step


def cost(sides: dict[str, Any]) -> dict[str, Any]:
    """Return the medians of both sides, and the extra cost of `any` as a share of `one`, median and range."""
    return {
        "one_ms": sides["one"]["median_ms"],
        "any_ms": sides["any"]["median_ms"],
        "cost_of_any": round(1 / sides["any"]["speedup_over_one"] - 1, 4),
        "range": [round(1 / ratio - 1, 3) for ratio in reversed(sides["any"]["range"])],
    }


def steps(paths: dict[str, Path], rounds: int, calls: int) -> dict[str, Any]:
    """Time a step of one stream, for every backend and number of threads."""
    found = {}
    for name in BACKENDS:
        for threads in THREADS:
            opened = {side: Bundle.open(path) for side, path in paths.items()}
            backends = {side: open_backend(bundle, name, threads=threads) for side, bundle in opened.items()}
            sides = {side: stepper(backend, opened[side].config) for side, backend in backends.items()}
            found[f"{name}, {threads} threads"] = {
                label: cost(compare(sides, rounds=rounds, calls=calls, clock=clock))
                for label, clock in (("of_the_processor", time.process_time), ("by_the_clock", time.perf_counter))
            }
            for backend in backends.values():
                backend.close()
    return found


def openings(paths: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Time new processes, in turn, from opening the bundle to the first forecast frame (s)."""
    found = {}
    for name in BACKENDS:
        taken: dict[str, list[list[float]]] = {side: [] for side in paths}
        for _ in range(rounds):
            for side, path in paths.items():
                command = [sys.executable, "-c", FIRST, str(path), name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                taken[side].append([float(number) for number in done.stdout.split()])
        times = {side: np.array(values) for side, values in taken.items()}  # [rounds, 2]: elapsed, processor
        ratios = times["any"] / times["one"]
        found[name] = {
            label: {
                **{f"{side}_seconds": round(float(np.median(values[:, column])), 3) for side, values in times.items()},
                "cost_of_any": round(float(np.median(ratios[:, column])) - 1, 4),
            }
            for column, label in enumerate(("by_the_clock", "of_the_processor"))
        }
    return found


@click.command()
@click.option("--size", type=click.Choice(list(CALLS)), default="demo", show_default=True, help="Size of the model.")
@click.option("--rounds", default=61, show_default=True, help="Number of blocks of steps of each side.")
@click.option("--openings", "opened", default=9, show_default=True, help="Number of new processes of each side.")
def main(size: str, rounds: int, opened: int) -> None:
    """Compare a bundle for any number of streams with a bundle for one stream."""
    with tempfile.TemporaryDirectory() as name:
        paths = bundles(size, Path(name))
        save(
            f"any_batch_{size}",
            {
                "what": f"one stream, {size} model: bundle for any number of streams compared with bundle for one",
                "steps": steps(paths, rounds, CALLS[size]),
                "opening_to_first_frame": openings(paths, opened),
            },
        )


if __name__ == "__main__":
    main()
