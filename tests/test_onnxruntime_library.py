"""ONNX Runtime as the package imports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = """
import os, signal, sys
before = dict(os.environ)
from e3d_deploy.onnxruntime_library import onnxruntime
masks = [line.split()[1] for task in os.listdir("/proc/self/task") if int(task) != os.getpid()
         for line in open(f"/proc/self/task/{task}/status") if line.startswith("SigBlk")]
assert dict(os.environ) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(len(masks), len([mask for mask in masks if not int(mask, 16)]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads cannot be looked at on this system")
@pytest.mark.parametrize(("switch", "threads"), [(None, "0 0"), ("1", "0 0"), ("0", "1 0")])
def test_its_import_starts_no_thread_that_reports_or_takes_signals(switch: str | None, threads: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # NumPy's own threads
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if switch is not None:
        environment["ORT_DISABLE_TELEMETRY"] = switch
    done = subprocess.run([sys.executable, "-c", IMPORT], check=False, capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == (threads, "")
