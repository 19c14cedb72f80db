"""Measurements in a process of their own."""

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
    """Call the function `child` of a module in a new Python, which takes this package from where this one has it.

    Args:
        variables: of the environment, beside those of this process.

    Raises:
        OSError: there is no Python to start, as in a program that embeds it.
        SubprocessError: it failed, or took too long.
    """
    if not sys.executable:
        raise OSError("this Python does not know its executable")
    root = str(Path(e3d_deploy.__file__).absolute().parents[1])  # may be a zip archive
    command = [sys.executable, "-c", CODE, root, module, argument]
    environment = os.environ | dict(variables or {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=True)
    return done.stdout
