"""Summary of the sources of `e3d stream` after they have ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e3d_deploy.json_values import json_object
from e3d_deploy.live.push import Push
from e3d_deploy.live.statistics import Percentiles
from e3d_deploy.live.worker import SourceWorker


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Summary of one source."""

    source: str
    frames: int
    """Number of pictures that were pushed into the stream and forecast from."""
    frames_per_second: float | None
    """Pictures per second, including the time for reading and writing; None if no picture arrived."""
    source_frames_per_second: float | None
    """Frame rate that the source states; None if it states no rate."""
    latency_ms: Percentiles | None
    """Times from a decoded picture to its complete forecast, including the wait in the queue, over the last 10,000
    pictures (ms)."""
    model_ms: Percentiles | None
    """Times of pushing a picture into the stream and forecasting, over the last 10,000 pictures (ms)."""
    dropped: int
    """Number of pictures that were dropped because the queue was full."""
    reconnects: int
    cuts: int
    """Number of resets of the state. Besides cuts, reconnects and changes of size also reset the state."""
    age: int | None
    """Age of the state at the end (pictures); None if no picture arrived."""
    mse: float | None
    """Mean squared error of the last frame of a forecast, summed over the frame; None if no forecast was compared."""
    copy_mse: float | None
    """Mean squared error of copying the last picture, summed over the frame; None if no forecast was compared."""
    verdict: str | None
    """Sentence that says that the model did not beat copying the last picture, over the last 300 compared pictures.
    None if the model beat copying, or if too few pictures were compared for a verdict."""
    output: Path | None
    """Path of the video; None if no complete video was written."""
    pushed: int | None
    """Number of pictures that were sent to the peer of `--push`; None without `--push`."""
    not_pushed: int | None
    """Number of pictures that were not sent to the peer of `--push`; None without `--push`."""
    error: str | None
    """Error that ended the source; None if the source ended without an error or was stopped."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of all sources."""

    backend: str
    horizon: int
    renewal: str
    frames: int
    frames_per_second: float | None
    """Pictures per second of all sources together; None if no picture arrived."""
    dropped: int
    sources: Sequence[SourceSummary]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return json_object(self)


def summarise(
    workers: Sequence[SourceWorker], outputs: Sequence[tuple[Path | None, Push | None]], backend: str
) -> Summary:
    """Return the summary of workers that have ended.

    Args:
        outputs: path of the video and the `Push` of each worker; None in place of an output that a worker lacks.
        backend: name of the backend.
    """
    sources = [_source(worker, video, push) for worker, (video, push) in zip(workers, outputs, strict=True)]
    seconds = max(worker.statistics.ended_s for worker in workers) - min(
        worker.statistics.began_s for worker in workers
    )
    frames = sum(one.frames for one in sources)
    return Summary(
        backend=backend,
        horizon=workers[0].follower.horizon,
        renewal=workers[0].slot.renewal,
        frames=frames,
        frames_per_second=frames / seconds if frames else None,
        dropped=sum(one.dropped for one in sources),
        sources=sources,
    )


def _source(worker: SourceWorker, output: Path | None, push: Push | None) -> SourceSummary:
    statistics, feed, error = worker.statistics.current(), worker.feed, worker.error
    return SourceSummary(
        source=worker.label,
        frames=statistics.frames,
        frames_per_second=statistics.mean_frames_per_second,
        source_frames_per_second=feed.frames_per_second,
        latency_ms=statistics.latency_ms,
        model_ms=statistics.model_ms,
        dropped=feed.dropped,
        reconnects=feed.reconnects,
        cuts=statistics.cuts,
        age=statistics.age,
        mse=statistics.mse,
        copy_mse=statistics.copy_mse,
        verdict=statistics.verdict,
        output=output if worker.is_complete else None,
        pushed=None if push is None else push.sent,
        not_pushed=None if push is None else push.not_sent,
        error=None if error is None or isinstance(error, BrokenPipeError) else str(error),
    )
