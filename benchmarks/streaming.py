"""Does a stream stay flat? Resident memory and time of a step over 2,000 frames of the demo model.

python -m benchmarks.streaming [--frames 2000]
"""

import gc
import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.common import save
from e3d_deploy import runtime
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.export.bundle import export


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@click.command()
@click.option("--frames", default=2000, show_default=True)
def main(frames: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 1), np.uint8)
    with tempfile.TemporaryDirectory() as name:
        path = export(MODEL, Path(name) / "demo.e3d")
        with runtime.load(path, "onnxruntime", threads=1) as predictor:
            stream = predictor.stream()
            times, memory = [], {}
            for count in range(frames):
                started = time.perf_counter()
                stream.push(pictures[count % len(pictures)])
                times.append(time.perf_counter() - started)
                if count + 1 in (100, frames // 2, frames):
                    gc.collect()
                    memory[count + 1] = resident()
    # Blocks of 30 steps: the first with a full ring, and the last.
    early, late = np.median(times[30:60]), np.median(times[-30:])
    save(
        "streaming",
        {
            "what": "push of a picture, demo model, onnxruntime",
            "frames": frames,
            "resident_mb": {str(count): round(size / 1e6, 1) for count, size in memory.items()},
            "growth_mb": round((memory[frames] - memory[100]) / 1e6, 2),
            "step_ms": {"frames 30 to 60": round(1000 * early, 3), f"last 30 of {frames}": round(1000 * late, 3)},
            "late_over_early": round(float(late / early), 3),
        },
        threads=1,
    )


if __name__ == "__main__":
    main()
