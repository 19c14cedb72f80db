"""Follow one source in a program of your own, in a `for` loop over its pictures."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Ended, Feed, FeedOptions
from e3d_deploy.data.rate import ALL, Selection, warn_of_interval
from e3d_deploy.errors import ConfigError
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.observation import Observation, observe
from e3d_deploy.live.worker import WAIT_S, needed_bytes
from e3d_deploy.memory import check_memory
from e3d_deploy.progress import Notify
from e3d_deploy.runtime.arguments import check_count
from e3d_deploy.runtime.predictor import Predictor

log = logging.getLogger(__name__)

USUAL = FeedOptions()
"""Options of a source: those of `e3d stream`."""


def open_feed(
    predictor: Predictor,
    source: str | Path,
    options: FeedOptions = USUAL,
    *,
    selection: Selection = ALL,
    notify: Notify = log.warning,
) -> Feed:
    """Open a source, whose pictures are converted to the size and channels of a predictor.

    Args:
        source: path of a video or of a folder of pictures, a camera such as `/dev/video0`, or an address.
        options: queue, time limits and reconnects.
        selection: which pictures to read: every Nth, or resampled to a rate.
        notify: called from another thread with a sentence about each attempt to reconnect and each reconnect.

    Raises:
        ConfigError, ClipError, SourceLost, ShapeError, BackendUnavailable: see `parse_address` and `Feed`.
    """
    for name, given, kind in (("options", options, FeedOptions), ("selection", selection, Selection)):
        if not isinstance(given, kind):
            raise ConfigError(f"{name}: got {given!r}, expected {kind.__name__}")
    form = Form.of(predictor.config, predictor.card)
    feed = Feed(parse_address(str(source)), form, options, selection=selection, notify=notify)
    warn_of_interval(feed.address.name, [feed.frames_per_second], predictor.card.window, selection=selection)
    return feed


class Watch:
    """Pictures of a source, each with its forecast, its errors and its novelty.

    Iterate over it in one thread. After a reconnect, the state begins again, and the medians of the novelty are kept.

    Args:
        source: see `open_feed`, which also describes `options`, `selection` and `notify`.
        horizon: number of frames to forecast after each picture.
        renewal: renewal of the stream; None uses the default of the predictor.
        reset_on_cut: reset the state before a picture that begins a new scene.

    Raises:
        ConfigError: `predictor`, `horizon` or `renewal` is invalid.
        ConfigError, ClipError, SourceLost, ShapeError, BackendUnavailable: see `open_feed`.
        ResourceLimit: the forecasts of a horizon need more than the free memory.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: str | Path,
        *,
        horizon: int = 1,
        renewal: str | None = None,
        reset_on_cut: bool = False,
        options: FeedOptions = USUAL,
        selection: Selection = ALL,
        notify: Notify = log.warning,
    ) -> None:
        if not isinstance(predictor, Predictor):
            raise ConfigError(f"predictor: got {predictor!r}, expected a predictor, such as `load` returns")
        horizon = check_count("horizon", horizon)
        check_memory(f"horizon {horizon}", needed_bytes(predictor.config, horizon), "give a smaller horizon")
        stream = predictor.stream(renewal=renewal)
        self._follower = Follower(
            stream,
            predictor.config,
            horizon=horizon,
            renewal=predictor.renewal(stream.renewal),
            reset_on_cut=reset_on_cut,
        )
        self._stopping = False
        self.feed = open_feed(predictor, source, options, selection=selection, notify=notify)
        """Pictures of the source, with the counts of dropped pictures and reconnects."""

    @property
    def name(self) -> str:
        """Name of the source, without user, password and query."""
        return self.feed.address.name

    def stop(self) -> None:
        """End the iteration after the current picture. Any thread or signal handler may call this method."""
        self._stopping = True

    def __iter__(self) -> Iterator[Observation]:
        """Yield each picture after its forecast, until the source ends or `stop` is called.

        Raises:
            SourceLost, ClipError: the source failed. The error is raised after all earlier pictures.
            StreamError, ResourceLimit: see `Follower.follow`.
        """
        while not self._stopping:
            try:
                arrival = self.feed.take(WAIT_S)
            except Ended:
                return
            if arrival is not None:
                yield observe(self._follower, arrival, source=self.name, dropped=self.feed.dropped)

    def close(self) -> None:
        """Close the source."""
        self.feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
