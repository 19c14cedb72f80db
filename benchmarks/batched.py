"""Compare one step of eight streams with eight steps of one stream each, on each backend and precision.

    taskset -c 0 python -m benchmarks.batched [--size full|demo] [--streams 8] [--threads 1] [--folder exports]

Both sides run the same bundle, exported for any number of streams, with full rings, and are timed in turn in one
process. Writes benchmarks/results/batched_SIZE_STREAMS_THREADS_PROCESSOR.json.

Prediction: one step of eight streams is 1.3 times as fast in bf16 on a processor with AMX, where reading the weights
limits a step of one stream; there is almost no gain in float32, where the arithmetic uses the whole core. Measured with
AVX-512 and bfloat16, without AMX: no gain in either. The weights are 26 MB in bfloat16. Reading them at 10 to 20 GB/s
takes 1 to 3 ms of a step of 93 ms; the rest of the work grows with the number of streams. On AMX, where a step takes
about 25 ms, the gain could be a tenth.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import CLOCK_HELP, CLOCKS, compare, processor_kind, save, size_option
from benchmarks.peers import Exports, source_of
from benchmarks.precision import feed
from e3d_deploy import contract, turns
from e3d_deploy.errors import E3DError
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend

BACKENDS, PRECISIONS = ("onnxruntime", "openvino"), ("fp32", "bf16")


def stepper(backend: Backend, arrays: dict[str, Any], batch: int, steps: int) -> Callable[[], None]:
    """Return a function that steps `steps` states of `batch` streams each, with full rings, once."""
    wide = {name: np.repeat(value, batch, axis=0) for name, value in arrays.items()}
    frame = wide.pop(contract.FRAME)
    states = [backend.from_arrays(wide) for _ in range(steps)]

    def call() -> None:
        for number, state in enumerate(states):
            _, states[number] = backend.step(frame, state)

    return call


def measure(
    bundle: Bundle, name: str, *, streams: int, threads: int, rounds: int, clock: turns.Clock
) -> dict[str, Any]:
    """Time a round of all streams in turn: stepped one by one, and in one batch."""
    arrays = feed(bundle.config)
    with open_backend(bundle, name, threads=threads) as backend:
        sides = {
            "one by one": stepper(backend, arrays, 1, streams),
            "batched": stepper(backend, arrays, streams, 1),
        }
        found = compare(sides, rounds=rounds, calls=1, clock=clock)
    return {
        "one_by_one_ms": found["one by one"]["median_ms"],
        "batched_ms": found["batched"]["median_ms"],
        "gain": found["batched"]["speedup_over_one by one"],
        "range": found["batched"]["range"],
    }


@click.command()
@size_option("full")
@click.option("--streams", default=8, show_default=True, help="Number of streams.")
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help=CLOCK_HELP)
@click.option("--rounds", default=5, show_default=True, help="Number of rounds; each side is timed once per round.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which exports are kept and reused, shared with benchmarks.peers.",
)
def main(size: str, streams: int, threads: int, folder: Path | None, clock: str, rounds: int) -> None:
    """Compare one step of several streams with steps of one stream each."""
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        source, folder = source_of(size, "paper", folder or Path(temporary))
        exports = Exports(source, folder, threads)
        for precision in PRECISIONS:
            for name in BACKENDS:
                try:
                    bundle = exports.bundle(precision)
                    found = measure(bundle, name, streams=streams, threads=threads, rounds=rounds, clock=CLOCKS[clock])
                except E3DError as error:
                    skipped[f"{name}, {precision}"] = str(error)
                    continue
                rows.append({"backend": name, "precision": precision, **found})
    kind = processor_kind()
    result = {
        "what": f"a round of {streams} streams, rings full: steps of one stream each, and one step of all streams",
        "size": size,
        "semantics": "paper",
        "streams": streams,
        "threads": threads,
        "processor": kind,
        "clock": clock,
        "rows": rows,
        "skipped": skipped,
    }
    save(f"batched_{size}_{streams}_{threads}_{kind}", result, threads=threads)


if __name__ == "__main__":
    main()
