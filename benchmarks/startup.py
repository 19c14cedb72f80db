"""Start-up times in new processes: `e3d --help`, the import of the runtime, and the first forecast frame.

    python -m benchmarks.startup

Writes benchmarks/results/startup.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import FULL, save
from e3d_deploy.export.bundle import export

IMPORT = "import time; t = time.perf_counter(); from e3d_deploy.runtime import load; print(time.perf_counter() - t)"
FIRST = """
import sys, time
started = time.perf_counter()
import numpy as np
import e3d_deploy.runtime as e3d
stream = e3d.load(sys.argv[1], sys.argv[2], threads=2).stream(renewal="none")
stream.push(np.zeros((64, 64, 1), np.uint8))
stream.predict(1)
print(time.perf_counter() - started)
"""
BACKENDS = ("onnxruntime", "openvino", "auto")


def seconds(code: str, *arguments: str) -> float:
    """Run code in a new process; return the time that it prints (s)."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    helps, imports = [], []
    firsts: dict[str, list[float]] = {name: [] for name in BACKENDS}
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = os.environ["PYTHONPYCACHEPREFIX"] = name
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode is compiled once and reused, as in normal use
        bundle = str(export(FULL, Path(name) / "full.e3d"))
        choosing = seconds(FIRST, bundle, "auto")
        for _ in range(9):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "e3d_deploy", "--help"], check=True, stdout=subprocess.DEVNULL)
            helps.append(time.perf_counter() - started)
            imports.append(seconds(IMPORT))
            for backend, taken in firsts.items():
                taken.append(seconds(FIRST, bundle, backend))
    save(
        "startup",
        {
            "what": "median of 9 new processes in turn, seconds; help: the whole process; import: the statement only; "
            "first frame: from the import to the first forecast frame of the full-size model, two threads",
            "help_seconds": round(float(np.median(helps)), 3),
            "import_runtime_seconds": round(float(np.median(imports)), 3),
            "first_frame_seconds": {name: round(float(np.median(taken)), 2) for name, taken in firsts.items()},
            "first_frame_seconds_when_auto_chooses": round(choosing, 2),
        },
        threads=2,
    )


if __name__ == "__main__":
    main()
