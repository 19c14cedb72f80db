"""Check of a bundle on this machine: the backend that runs it, and the number of streams."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e3d_deploy.json_values import json_object
from e3d_deploy.measure.results import StreamCurves
from e3d_deploy.measure.stream_curve import FPS, LatencyGoal, stream_curve
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.arguments import check_number
from e3d_deploy.runtime.choose import Choice, choose

SECONDS, REPEATS = 0.1, 3
"""Duration of a timed block (s), and number of blocks for each number of streams. `e3d benchmark` takes longer and is
more accurate."""


@dataclass(frozen=True)
class BundleReport:
    """Backend that `auto` selects for a bundle, and the streams that it holds."""

    choice: Choice
    streams: StreamCurves
    load_average: float | None
    """Load average of the machine before the measurement; None if the system does not have one."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return json_object(self)


def examine_bundle(
    path: Bundle | str | Path,
    *,
    fps: float | None = None,
    threads: int | None = None,
    again: bool = False,
    progress: Notify = silent,
) -> BundleReport:
    """Select a backend for a bundle, and measure how many streams it steps in real time.

    Args:
        path: bundle, opened or as the path of its folder.
        fps: frame rate of each stream (frames/s); None for 30. Streams hold it if the 99th percentile of the time of a
            round is at most the time between two frames.
        threads: CPU threads within a step; None leaves the number to the library.
        again: ignore a stored choice.

    Raises:
        BackendUnavailable: no installed backend runs the bundle.
        BundleError: the bundle is damaged, incomplete or too new.
        ConfigError: an argument is invalid.
    """
    fps = check_number("fps", FPS if fps is None else fps)
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    bundle = Bundle.of(path)
    backend, choice = choose(bundle, threads=threads, again=again)
    try:
        goal = LatencyGoal(p99_ms=1000 / fps, fps=fps)
        streams = stream_curve(bundle, [backend], [1], goal=goal, seconds=SECONDS, repeats=REPEATS, progress=progress)
    finally:
        backend.close()
    return BundleReport(choice, streams, load_average)
