"""Peak memory of a backend, measured in a process that runs only this backend."""

import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BundleError
from e3d_deploy.measure.child import call_child
from e3d_deploy.measure.environment import peak_resident
from e3d_deploy.measure.tasks import make_task
from e3d_deploy.runtime.backends.registry import open_backend

log = logging.getLogger(__name__)

TIMEOUT_S = 600
"""Maximum time of the process (s)."""


def peak_alone(
    bundle: Bundle, name: str, what: Sequence[str], renewal: str | None = None, *, threads: int | None
) -> int | None:
    """Return the peak memory of a new process that opens a bundle and runs the warm-up of each task in `what` (bytes).

    The memory includes Python and the libraries, but no decoding of videos. If the process fails, return None and log
    the reason.
    """
    request = json.dumps([str(bundle.path.absolute()), bundle.digest, name, list(what), renewal, threads])
    try:
        found: int | None = json.loads(call_child(__name__, request, timeout_s=TIMEOUT_S))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("peak memory of %s is unknown: %s", name, said.strip().splitlines()[-1])
        return None
    return found


def child(request: str) -> str:
    """Run the warm-up of each requested task; return the peak memory of this process as JSON (bytes)."""
    path, digest, name, what, renewal, threads = json.loads(request)
    bundle = Bundle.open(Path(path))
    if bundle.digest != digest:
        raise BundleError(f"{path}: was exported again in the meantime; run the command again")
    with open_backend(bundle, name, threads=threads) as backend:
        for one in what:
            task = make_task(one, bundle, backend, renewal=renewal)
            for _ in range(task.fill + 1):
                task.call()
    return json.dumps(peak_resident())
