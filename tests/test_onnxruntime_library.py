"""Import of ONNX Runtime by the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = """
import os, signal, sys
before = dict(os.environ)
from e3d_deploy.onnxruntime_library import onnxruntime
assert dict(os.environ) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(len(os.listdir("/proc/self/task")) - 1, os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads cannot be looked at on this system")
@pytest.mark.parametrize("switch", [None, "1", "yes"])
def test_its_import_starts_no_thread_and_leaves_the_environment_as_it_is(switch: str | None) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # NumPy's own threads
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if switch is not None:
        environment["ORT_DISABLE_TELEMETRY"] = switch
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout.strip(), done.stderr) == (f"0 {switch}", "")
