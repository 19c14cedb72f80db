"""Summary of sources that were followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e3d_deploy.json_values import json_object
from e3d_deploy.live.counts import Percentiles
from e3d_deploy.live.push import Push
from e3d_deploy.live.worker import SourceWorker


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Summary of one source."""

    source: str
    frames: int
    """Pictures that were seen."""
    frames_per_second: float | None
    """Pictures a second, with reading and outputs; None without a picture."""
    source_frames_per_second: float | None
    """Rate that the source tells."""
    latency_ms: Percentiles | None
    """Times from the decoded picture to the whole forecast, with the wait in the queue, of the last 10,000 pictures."""
    model_ms: Percentiles | None
    """Times of push and forecast alone."""
    dropped: int
    """Pictures that were dropped because a newer one had come."""
    reconnects: int
    cuts: int
    """Pictures before which the state was reset."""
    age: int | None
    """Age of the state at the end, in pictures."""
    mse: float | None
    """Squared error at the horizon, summed over the frame; None where no truth came."""
    copy_mse: float | None
    """The same of copying the last picture."""
    verdict: str | None
    """Sentence if the model did not beat copying the last picture over the last 300 pictures."""
    output: Path | None
    """Video that was written."""
    pushed: int | None
    """Pictures that were sent to `--push`; None without it."""
    not_pushed: int | None
    """Pictures that its peer did not take."""
    error: str | None
    """Error that ended the source."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of all sources."""

    backend: str
    horizon: int
    renewal: str
    frames: int
    frames_per_second: float | None
    """Pictures a second of all sources together."""
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
        outputs: video and peer of each worker; None where it has none.
    """
    sources = [_source(worker, video, push) for worker, (video, push) in zip(workers, outputs, strict=True)]
    seconds = max(worker.counts.ended_s for worker in workers) - min(worker.counts.began_s for worker in workers)
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
    standing, feed, error = worker.counts.standing(), worker.feed, worker.error
    return SourceSummary(
        source=worker.label,
        frames=standing.frames,
        frames_per_second=standing.mean_frames_per_second,
        source_frames_per_second=feed.frames_per_second,
        latency_ms=standing.latency_ms,
        model_ms=standing.model_ms,
        dropped=feed.dropped,
        reconnects=feed.reconnects,
        cuts=standing.cuts,
        age=standing.age,
        mse=standing.mse,
        copy_mse=standing.copy_mse,
        verdict=standing.verdict,
        output=output if worker.is_kept else None,
        pushed=None if push is None else push.sent,
        not_pushed=None if push is None else push.not_sent,
        error=None if error is None or isinstance(error, BrokenPipeError) else str(error),
    )
