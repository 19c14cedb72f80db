"""Calls in a new Python process, for measurements that need their own process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import e3d_deploy

CODE = """
import sys
root, module, argument = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from importlib import import_module
sys.stdout.write(import_module(module).child(argument))
"""


def call_child(module: str, argument: str, *, timeout_s: float, variables: Mapping[str, str] | None = None) -> str:
    """Call the function `child` of a module in a new Python process, and return its result.

    The new process imports e3d_deploy from the same location as this process.

    Args:
        argument: argument of the function.
        variables: environment variables in addition to those of this process.

    Raises:
        OSError: The path of the Python executable is unknown, as in a program that embeds Python.
        SubprocessError: The process failed, or did not end within `timeout_s`.
    """
    if not sys.executable:
        raise OSError("the path of the Python executable is unknown")
    root = str(Path(e3d_deploy.__file__).absolute().parents[1])  # may be a zip archive
    command = [sys.executable, "-c", CODE, root, module, argument]
    environment = os.environ | dict(variables or {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=True)
    return done.stdout
