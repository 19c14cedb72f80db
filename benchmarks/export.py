"""Time and peak memory of exporting the full-size model: step, rollout and clip graph for 10 frames from 10.

    python -m benchmarks.export

Writes benchmarks/results/export_full.json.
"""

import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import FULL, save
from e3d_deploy.export.bundle import export


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        phases: dict[str, float] = {}
        started = time.perf_counter()
        path = export(FULL, Path(name) / "full.e3d", progress=lambda phase: phases.update({phase: time.perf_counter()}))
        seconds = time.perf_counter() - started
        sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    ends = [*list(phases.values())[1:], started + seconds]
    save(
        "export_full",
        {
            "what": "export of hidden 4×64, 64×64, patch 4: step, rollout and clip 10→10",
            "seconds": round(seconds, 1),
            "phases": {phase: round(end - begin, 1) for (phase, begin), end in zip(phases.items(), ends, strict=True)},
            "peak_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            "bytes": sizes,
        },
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
