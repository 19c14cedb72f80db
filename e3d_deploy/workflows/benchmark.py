"""Benchmark of a bundle: opens the backends, times them, counts streams and compares with an earlier run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.config import ModelConfig
from e3d_deploy.data import clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ConfigError
from e3d_deploy.files import write_file
from e3d_deploy.libraries import is_importable
from e3d_deploy.measure.baseline import compare, read_baseline
from e3d_deploy.measure.benchmark import benchmark as measure
from e3d_deploy.measure.results import BenchmarkResult
from e3d_deploy.measure.stream_curve import FPS, LatencyGoal, stream_curve
from e3d_deploy.measure.tasks import Pictures, check_what
from e3d_deploy.measure.timing import REPEATS
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.arguments import check_count, check_counts, check_list, check_number
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.shipped import extracted
from e3d_deploy.workflows.opening import folder_of
from e3d_deploy.workflows.places import check_picture

TOLERANCE = 0.1
"""Default of `tolerance`, a fraction."""


def benchmark(
    bundle: Bundle | str | Path,
    backends: Sequence[str] = ("torch", "onnxruntime"),
    what: Sequence[str] = ("step",),
    *,
    renewal: str | None = None,
    threads: int | None = None,
    seconds: float = 1.0,
    repeats: int = REPEATS,
    streams: Sequence[int] = (),
    latency_goal_ms: float | None = None,
    fps: float | None = None,
    memory: bool = True,
    baseline: str | Path | None = None,
    tolerance: float | None = None,
    picture: str | Path | None = None,
    progress: Notify = silent,
) -> BenchmarkResult:
    """Time several backends in turn, and compare their results with PyTorch.

    Args:
        bundle: bundle, opened or as the path of its folder.
        backends: names of backends; speed-ups are relative to the first.
        what: work to time, any of `step`, `stream`, `rollout`, `clip`, `end-to-end`.
        renewal: renewal of old states in `stream` and with many streams; None for that of the model.
        threads: CPU threads of a step; None leaves the number to the library.
        seconds: duration of one timed block (s).
        repeats: number of timed blocks of each backend.
        streams: numbers of streams for which a round is timed.
        latency_goal_ms: find how many streams have a p99 of at most this time (ms).
        fps: frames per second of each stream; None for 30; needs `latency_goal_ms`.
        memory: measure peak memory, in one process per backend.
        baseline: JSON file of an earlier result, with which the result is compared.
        tolerance: allowed slowdown as a fraction; None for 0.1; needs `baseline`.
        picture: PNG file for a plot of the times.
        progress: called with lines about the current work.

    Raises:
        BackendUnavailable: a library is missing, or does not run the precision of the bundle.
        BundleError: the bundle is damaged, or lacks a graph that a task needs.
        BenchmarkError: the baseline is not a result of a benchmark.
        ConfigError: an argument is invalid.
    """
    check_counts(repeats=repeats, least=5)
    for name, given in (("backends", backends), ("what", what), ("streams", streams)):
        check_list(name, given)
    for count in streams:
        check_count("streams", count)
    check_number("seconds", seconds)
    for name, number in (("latency_goal_ms", latency_goal_ms), ("fps", fps)):
        if number is not None:
            check_number(name, number)
    if tolerance is not None:
        check_number("tolerance", tolerance, least=0)
    if fps is not None and latency_goal_ms is None:
        raise ConfigError("--fps requires --latency-goal; give both, or neither")
    if tolerance is not None and baseline is None:
        raise ConfigError("--tolerance requires --baseline; give both, or neither")
    if renewal is not None and not ("stream" in what or streams or latency_goal_ms is not None):
        raise ConfigError("--renewal requires --what stream, --streams or --latency-goal; give one of them too")
    baseline = None if baseline is None else check_path("baseline", baseline)
    picture = None if picture is None else check_path("picture", picture)
    check_picture(picture, folder_of(bundle), baseline)
    check_what(what)
    before = None if baseline is None else read_baseline(baseline)
    goal = None if latency_goal_ms is None else LatencyGoal(latency_goal_ms, fps or FPS)
    opened = Bundle.of(bundle)
    play = _real_clip(opened.config) if "end-to-end" in what else None
    timing: dict[str, Any] = {"renewal": renewal, "seconds": seconds, "repeats": repeats, "progress": progress}
    with ExitStack() as stack:
        sides = [stack.enter_context(open_backend(opened, name, threads=threads)) for name in backends]
        result = measure(opened, sides, what, threads=threads, play=play, memory=memory, **timing)
        if streams or goal:
            result = replace(result, streams=stream_curve(opened, sides, streams, goal=goal, **timing))
    if before is not None:
        allowed = TOLERANCE if tolerance is None else tolerance
        result = replace(result, baseline=compare(result.to_json(), before, allowed))
    if picture is not None:
        from e3d_deploy.measure import plots

        write_file(picture, plots.latency(result))
    return result


def _real_clip(config: ModelConfig) -> Callable[[], Pictures] | None:
    """Return a function that plays a real video in a loop.

    The result is None if the video library is missing or the frames are neither gray nor RGB.
    """
    if not is_importable("av") or config.channels not in (1, 3):
        return None
    form = Form(image_size=config.image_size, channels=config.channels)

    def play() -> Iterator[Any]:
        while True:
            with extracted(clips.PEDESTRIANS) as path:
                yield from clips.play(path, form, remarks=Remarks(silent=True)).pictures

    return play
