"""Time of a round per number of streams, and the maximum number of streams that meet a latency goal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import ConfigError
from e3d_deploy.measure.results import Answer, Curve, Point, StreamCurves
from e3d_deploy.measure.tasks import Task, step_task
from e3d_deploy.measure.timing import REPEATS, Block, Runner, blocks_in_turn
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.aged import advance, aged_stream
from e3d_deploy.runtime.backends.protocol import Backend, step_size
from e3d_deploy.runtime.batching import Batcher
from e3d_deploy.runtime.renewal import NONE, Renewal, renewal_for
from e3d_deploy.turns import Clock

HOW = (
    "a round steps each stream once; its time is the wait of the last stream if all frames arrive at the same moment; "
    "the streams are batched into steps of the sizes that the backend supports, and these steps run one after another; "
    "the renewal sets the number of states per stream; the streams began at different frames"
)
FPS = 30.0
"""Default of the frame rate of each stream (frames/s)."""
MAX_STREAMS = 256
"""Maximum number of streams tried in the search."""


@dataclass(frozen=True)
class LatencyGoal:
    """Latency goal and frame rate of the streams."""

    p99_ms: float
    """Maximum of the 99th percentile of the time of a round (ms)."""
    fps: float
    """Frame rate of each stream (frames/s); the mean time of a round must not exceed the time between two frames."""

    def __post_init__(self) -> None:
        if not (self.p99_ms > 0 and self.fps > 0):
            raise ConfigError(
                f"latency goal: got p99 {self.p99_ms:g} ms at {self.fps:g} frames/s, expected more than 0"
            )

    def held(self, point: Point) -> bool:
        """Return True if a point meets the goal."""
        return point.p99_ms <= self.p99_ms and point.mean_ms <= 1000 / self.fps


def portions(backend: Backend, streams: int) -> list[int]:
    """Return the batch size of each step in a round, chosen from the batch sizes that the backend supports."""
    result = []
    while streams > 0:
        result.append(step_size(backend, streams))
        streams -= result[-1]
    return result


def stream_curve(
    bundle: Bundle,
    backends: Sequence[Backend],
    counts: Sequence[int],
    *,
    goal: LatencyGoal | None = None,
    renewal: str | None = None,
    seconds: float = 1.0,
    repeats: int = REPEATS,
    progress: Notify = silent,
    clock: Clock = time.perf_counter,
) -> StreamCurves:
    """Measure the time of a round for several numbers of streams.

    Args:
        counts: numbers of streams to measure, each at least 1.
        goal: latency goal. If given, also search for the maximum number of streams that meet the goal; the search
            measures further numbers of streams.
        renewal: renewal of the streams. None means the default of the bundle, or `none` if its graphs step a fixed
            number of streams.

    Raises:
        ConfigError: There is neither a number of streams nor a latency goal, a number is below 1, or the renewal is
            invalid or unsupported.
    """
    if any(count < 1 for count in counts) or not (counts or goal):
        raise ConfigError(f"streams: got {list(counts)}, expected numbers of at least 1, or a latency goal")

    if bundle.batch != 1 and renewal not in (None, "none"):
        raise ConfigError(
            f"renewal: got {renewal}, but the graphs step {bundle.batch} streams at once, with one state each; "
            "omit it, or export with --batch 1 or any"
        )
    own = renewal_for(bundle.card, bundle.context_length, renewal) if bundle.batch == 1 else NONE
    if own.kind == "replay":
        raise ConfigError("renewal: got replay, which makes no steps before a forecast; use none or refresh:M")

    def measure(streams: int, sides: Sequence[Backend]) -> list[Point]:
        runners = [Runner(backend.name, _round(bundle, backend, streams, own), clock) for backend in sides]
        blocks = blocks_in_turn(
            runners, seconds=seconds, repeats=repeats, progress=lambda text: progress(f"{streams} streams, {text}")
        )
        sizes = [portions(backend, streams * own.states) for backend in sides]
        return [_point(streams, *pair) for pair in zip(sizes, blocks, strict=True)]

    points: list[dict[int, Point]] = [{} for _ in backends]
    for streams in sorted(set(counts)):
        for known, point in zip(points, measure(streams, backends), strict=True):
            known[streams] = point

    def answer(backend: Backend, known: dict[int, Point], goal: LatencyGoal) -> Answer:
        return max_streams(backend.name, lambda streams: measure(streams, [backend])[0], goal, known)

    answers = [answer(*pair, goal) for pair in zip(backends, points, strict=True)] if goal else []
    return StreamCurves(
        how=HOW,
        target_p99_ms=goal.p99_ms if goal else None,
        fps=goal.fps if goal else None,
        renewal=str(own),
        curves=tuple(
            Curve(backend=backend.name, points=tuple(known[streams] for streams in sorted(known)))
            for backend, known in zip(backends, points, strict=True)
        ),
        answers=tuple(answers),
    )


def max_streams(backend: str, measure: Callable[[int], Point], goal: LatencyGoal, known: dict[int, Point]) -> Answer:
    """Find the maximum number of streams that meet a latency goal.

    The search doubles the number until the goal is missed, and then bisects.

    Args:
        known: points already measured, by number of streams; new points are added.
    """

    def holds(streams: int) -> bool:
        if streams not in known:
            known[streams] = measure(streams)
        return goal.held(known[streams])

    low = max((streams for streams in known if holds(streams)), default=0)
    above = [streams for streams in known if streams > low]
    high = min(above) if above else None
    while high is None and low < MAX_STREAMS:
        streams = min(max(1, 2 * low), MAX_STREAMS)
        if holds(streams):
            low = streams
        else:
            high = streams
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return Answer(
        backend=backend,
        streams=low,
        at_least=high is None,
        at=known.get(low),
        beyond=known.get(low + 1),
        best=min(known.values(), key=lambda point: point.p99_ms),
    )


def _round(bundle: Bundle, backend: Backend, streams: int, renewal: Renewal) -> Task:
    """Return the task that steps each of `streams` streams once; the streams began at different frames."""
    if bundle.batch != 1:
        return _fixed_round(bundle, backend, streams)
    batcher, seen = Batcher(backend, bundle.config), cycle(bundle.reference()["frames"][:, None])
    old = renewal.cycle * (2 * bundle.states.slots + renewal.warm_up)
    videos = [aged_stream(batcher, bundle.states, renewal, old + number) for number in range(streams)]

    def call() -> None:
        videos[:] = advance(batcher, videos, [next(seen)] * streams)

    return Task(call, 1, renewal.cycle + 1, forecasts=False)


def _fixed_round(bundle: Bundle, backend: Backend, streams: int) -> Task:
    """Return the task of `_round` for graphs that step a fixed number of streams, each with one state."""
    frames, fill = bundle.reference()["frames"][:, None], bundle.states.frames_to_fill + 2
    steps = [
        step_task(backend, backend.initial_state(size), np.repeat(frames, size, axis=1), fill=fill)
        for size in portions(backend, streams)
    ]

    def call() -> None:
        for step in steps:
            step.call()

    return Task(call, 1, fill, forecasts=False)


def _point(streams: int, sizes: Sequence[int], blocks: Sequence[Block]) -> Point:
    every = 1000 * np.concatenate([block.seconds for block in blocks])
    p50 = float(np.median([1000 * block.median for block in blocks]))
    return Point(
        streams=streams,
        step_sizes=tuple(sizes),
        frames_per_second=1000 * streams / p50,
        p50_ms=p50,
        p99_ms=float(np.percentile(every, 99)),
        mean_ms=float(every.mean()),
        rounds=int(every.size),
    )
