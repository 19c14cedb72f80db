"""How long `e3d --help` and `import e3d_deploy.runtime` take, each in fresh processes.

python -m benchmarks.startup
"""

import subprocess
import sys
import time

import numpy as np

from benchmarks.common import save

CODE = "import time; t = time.perf_counter(); import e3d_deploy.runtime; print(time.perf_counter() - t)"


def main() -> None:
    helps, imports = [], []
    for _ in range(15):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "e3d_deploy", "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.perf_counter() - started)
        done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
        imports.append(float(done.stdout))
    save(
        "startup",
        {
            "what": "median of 15 fresh processes, seconds; help counts the whole process, import the statement alone",
            "help_seconds": round(float(np.median(helps)), 3),
            "import_runtime_seconds": round(float(np.median(imports)), 3),
        },
    )


if __name__ == "__main__":
    main()
