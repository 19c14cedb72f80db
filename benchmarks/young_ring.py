"""Compare the time of a push while the ring of a stream fills with the time of a push afterwards.

    python -m benchmarks.young_ring [--size demo|full] [--backend NAME]... [--rounds 15] [--threads 1]

The first 20 pushes of a new stream are timed in turn with pushes of an old stream, whose ring is full. This is done
with two bundles of the same model. One masks empty slots with `contract.EMPTY_BIAS`; the other masks them with minus
infinity, like versions up to faccf7a. Times are processor times, which other processes disturb less. Writes
benchmarks/results/young_ring_SIZE_THREADS.json.
"""

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from benchmarks.common import model_of, save, size_option
from e3d_deploy import contract, runtime
from e3d_deploy.export.bundle import export
from e3d_deploy.runtime import Stream

FRAMES = 20
BACKENDS = ("onnxruntime", "openvino", "torch")


def bundles(size: str, folder: Path) -> dict[str, Path]:
    """Export the model twice, with the finite bias and with minus infinity."""
    source = model_of(size, folder)
    new = export(source, folder / "new.e3d")
    with mock.patch.object(contract, "EMPTY_BIAS", -np.inf):
        old = export(source, folder / "old.e3d")
    return {"finite bias": new, "minus infinity": old}


def push_ms(stream: Stream, picture: Any) -> float:
    """Return the processor time of a push (ms)."""
    started = time.process_time()
    stream.push(picture)
    return 1000 * (time.process_time() - started)


def measure(paths: dict[str, Path], backend: str, rounds: int, threads: int) -> dict[str, Any]:
    """Time new and old streams of each bundle on a backend."""
    pictures = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 64, 1), np.uint8)
    predictors = {name: runtime.load(path, backend, threads=threads) for name, path in paths.items()}
    old = {name: predictor.stream(renewal="none") for name, predictor in predictors.items()}
    for stream in old.values():
        for number in range(3 * FRAMES):
            stream.push(pictures[number % FRAMES])
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, predictor in predictors.items():
            young = predictor.stream(renewal="none")
            times[name].append([(push_ms(young, one), push_ms(old[name], one)) for one in pictures])
    found = {}
    for name, values in times.items():
        array = np.array(values)  # [rounds, frames, young and old]
        ratios = array[..., 0].sum(1) / array[..., 1].sum(1)
        found[name] = {
            "young_ms": round(float(np.median(array[..., 0])), 3),
            "old_ms": round(float(np.median(array[..., 1])), 3),
            "young_over_old": round(float(np.median(ratios)), 3),
            "range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
            "by_frame": [round(float(ratio), 2) for ratio in np.median(array[..., 0] / array[..., 1], axis=0)],
        }
    for predictor in predictors.values():
        predictor.close()
    return found


@click.command()
@size_option("demo")
@click.option(
    "--backend", "backends", multiple=True, default=BACKENDS, show_default=True, help="Backend to measure; repeatable."
)
@click.option("--rounds", default=15, show_default=True, help="Number of rounds; each side is timed once per round.")
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
def main(size: str, backends: tuple[str, ...], rounds: int, threads: int) -> None:
    """Compare pushes while the ring fills with later pushes."""
    with tempfile.TemporaryDirectory() as name:
        paths = bundles(size, Path(name))
        save(
            f"young_ring_{size}_{threads}",
            {
                "what": f"frames 1 to {FRAMES} of a new stream compared with frames of an old stream, {size} model",
                "rounds": rounds,
                **{backend: measure(paths, backend, rounds, threads) for backend in backends},
            },
            threads=threads,
        )


if __name__ == "__main__":
    main()
