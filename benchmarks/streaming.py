"""Memory and time per push over 10,000 frames of one stream of the demo model; neither should grow.

    python -m benchmarks.streaming [--frames 10000] [--backend onnxruntime]

Times at the beginning and the end of a run are not comparable if other work on the machine changes. So at the end, the
stream that has seen all frames (old) is timed in turn with a stream that has just filled its ring (young). Writes
benchmarks/results/streaming.json, streaming_memory.png and streaming_time.png.
"""

import gc
import os
import tempfile
import time
from itertools import cycle
from pathlib import Path

import click
import numpy as np

from benchmarks.common import RESULTS, compare, save
from e3d_deploy import plots, runtime
from e3d_deploy.demo.exhibits import MODEL
from e3d_deploy.export.bundle import export

BLOCKS = 10
"""Number of points in the plots; each covers the same number of frames."""


def resident() -> int:
    """Return the resident memory of this process (bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@click.command()
@click.option("--frames", default=10_000, show_default=True, help="Number of frames to push.")
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend to measure.")
def main(frames: int, backend: str) -> None:
    """Measure memory and time per push over many frames of one stream."""
    pictures = cycle(np.random.default_rng(0).integers(0, 256, (100, 64, 64, 1), np.uint8))
    with tempfile.TemporaryDirectory() as name:
        path = export(MODEL, Path(name) / "demo.e3d")
        with runtime.load(path, backend, threads=1) as predictor:
            old, young = predictor.stream(renewal="none"), predictor.stream(renewal="none")
            for _ in range(30):
                old.push(next(pictures))
                young.push(next(pictures))
            gc.collect()
            started_with = resident()
            step_ms, growth_mb = [], []
            for _ in range(BLOCKS):
                times = []
                for _ in range(frames // BLOCKS):
                    started = time.perf_counter()
                    old.push(next(pictures))
                    times.append(time.perf_counter() - started)
                gc.collect()
                step_ms.append(round(1000 * float(np.median(times)), 3))
                growth_mb.append(round((resident() - started_with) / 1e6, 2))
            turns = compare(
                {"young": lambda: young.push(next(pictures)), "old": lambda: old.push(next(pictures))},
                rounds=15,
                calls=30,
            )
    counts = [(number + 1) * frames // BLOCKS for number in range(BLOCKS)]
    (RESULTS / "streaming_memory.png").write_bytes(
        plots.curves(
            {"resident memory": growth_mb, "allowed": [2.0] * BLOCKS},
            x=counts,
            xlabel="frames pushed",
            ylabel="growth, MB",
        )
    )
    (RESULTS / "streaming_time.png").write_bytes(
        plots.curves({"median push": step_ms}, x=counts, xlabel="frames pushed", ylabel="ms")
    )
    save(
        "streaming",
        {
            "what": f"push of a picture, demo model, {backend}",
            "frames": frames,
            "per": frames // BLOCKS,
            "step_ms": step_ms,
            "growth_mb": growth_mb,
            "late_over_early": round(1 / turns["old"]["speedup_over_young"], 4),
            "late_over_early_range": [round(1 / ratio, 3) for ratio in reversed(turns["old"]["range"])],
        },
        threads=1,
    )


if __name__ == "__main__":
    main()
