"""Read the pictures of any source in a thread of its own, through a bounded queue."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import Address
from e3d_deploy.data.live.bounded_queue import BoundedQueue, Ended
from e3d_deploy.data.live.raw import RawFrames
from e3d_deploy.data.live.reconnect import Reconnecting
from e3d_deploy.data.live.recorded import Recorded
from e3d_deploy.data.live.schedule import Schedule
from e3d_deploy.data.live.source import DecodedPicture, Source
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.data.rate import ALL, DEFAULT_RATE, Selection
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ConfigError, ShapeError
from e3d_deploy.progress import Notify, silent

__all__ = ["Arrival", "Ended", "Feed", "FeedOptions"]

CLOSING_S = 0.5
"""Maximum time that `close` waits for the reading thread (s). A thread that a library blocks is then abandoned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrival:
    """Picture of a source, with its index and its times."""

    picture: NDArray[np.uint8]
    """Picture in the size and channels of the model, [H, W, C]."""
    index: int
    """Index among the selected pictures since the source was opened, from 0. Dropped pictures are counted too."""
    time_s: float | None
    """Timestamp from the clock of the source (s); None if the source provides no timestamp."""
    arrived_s: float
    """Value of `time.perf_counter()` when the picture was decoded (s). For a recording that plays in real time:
    when the picture was due."""
    begins_video: bool
    """True for a picture that does not continue the previous picture: the first picture, and the first picture after a
    reconnect or a change of size."""


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """Queue, time limits and reconnects of a source.

    Raises:
        ConfigError: a field is out of its range.
    """

    policy: Literal["block", "drop-oldest"] | None = None
    """Action when the queue is full: block the source, or drop the oldest picture. None selects `drop-oldest` for a
    live source and `block` for a recording."""
    queue_length: int | None = None
    """Maximum number of pictures in the queue; None selects 1 for a live source and 4 for a recording."""
    silence_s: float = 10.0
    """Maximum time without a picture before a camera or a network source counts as lost (s)."""
    attempts: int = 5
    """Maximum number of consecutive attempts to reconnect without a picture; 0 never reconnects."""
    realtime: bool = False
    """Play recordings at their own frame rate, or at 10 frames per second if their rate is unknown. Ignored for live
    sources and standard input."""

    def __post_init__(self) -> None:
        if self.policy not in (None, "block", "drop-oldest"):
            raise ConfigError(f"policy: got {self.policy!r}, expected block or drop-oldest")
        length, attempts, silence_s = self.queue_length, self.attempts, self.silence_s
        if length is not None and not (isinstance(length, int) and length >= 1):
            raise ConfigError(
                f"queue_length: got {length!r}, expected a whole number of 1 or more; 1 keeps the newest picture"
            )
        if not (isinstance(silence_s, int | float) and 0 < silence_s <= 3600):
            raise ConfigError(f"silence_s: got {silence_s!r}, expected above 0 and up to 3600; 10 is usual")
        if not (isinstance(attempts, int) and attempts >= 0):
            raise ConfigError(f"attempts: got {attempts!r}, expected a whole number of 0 or more; 0 never reconnects")


class Feed:
    """Pictures of a source, in the order of their arrival.

    The constructor opens the source once and does not retry: a camera that is switched off is an error. Only a
    source that was open before is reconnected.

    Args:
        address: address of the source.
        form: size and channels that pictures are converted to.
        options: queue, time limits and reconnects.
        selection: which pictures to read: every Nth, or resampled to a rate. A live source is resampled according to
            its timestamps, or to the times of arrival if the source provides no timestamps.
        remarks: collects remarks on how pictures are converted; None logs each remark.
        notify: called from the reading thread with a sentence about each attempt to reconnect and each reconnect.
        stdin: binary stream of raw pictures; None reads standard input.

    Raises:
        ClipError: the source does not exist, is not a readable video, or refuses access.
        SourceLost: the source cannot be reached, or does not answer.
        ShapeError: the model has neither 1 nor 3 channels, and the source is a camera or a network address.
        ConfigError: the source does not support the selection.
        BackendUnavailable: the source needs the extra `video`, which is not installed.
    """

    def __init__(
        self,
        address: Address,
        form: Form,
        options: FeedOptions,
        *,
        selection: Selection = ALL,
        remarks: Remarks | None = None,
        notify: Notify = silent,
        stdin: BinaryIO | None = None,
    ) -> None:
        self.address, self.options = address, options
        remarks = remarks or Remarks()
        if address.kind == "file":
            self._source: Source = Recorded(Path(address.text), form, selection, remarks=remarks)
        elif address.raw is not None:
            self._source = RawFrames(address.raw, form, selection, remarks=remarks, stream=stdin)
        else:
            self._source = _connected(address, form, selection, options, remarks, notify)
        self.is_live = self._source.is_live
        """True if the source does not wait for its reader: a camera, RTSP, and HTTP without an end."""
        self.frames_per_second = self._source.rate
        """Selected pictures per second; None if the source states no rate."""
        policy = options.policy or ("drop-oldest" if self.is_live else "block")
        length = options.queue_length or (1 if self.is_live else 4)
        self._waiting: BoundedQueue[tuple[int, DecodedPicture]] = BoundedQueue(
            length, drop_oldest=policy == "drop-oldest"
        )
        self._closed, self._section = Event(), -1
        self._thread = Thread(target=self._read, name=f"feed {address.name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of pictures that were dropped because the queue was full."""
        return self._waiting.dropped

    @property
    def reconnects(self) -> int:
        """Number of successful reconnects."""
        return self._source.reconnects

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; return None if no picture arrives before the timeout.

        Only one thread at a time may call this method.

        Args:
            timeout_s: maximum time to wait (s); None waits without limit.

        Raises:
            Ended: the source has ended, or the feed is closed.
            SourceLost, ClipError: the source failed. The error is raised after all earlier pictures were taken.
        """
        taken = self._waiting.take(timeout_s)
        if taken is None:
            return None
        index, decoded = taken
        # The queue may have dropped the first picture of a section. So the section is compared with the section of the
        # last picture that was taken.
        begins_video, self._section = decoded.section != self._section, decoded.section
        return Arrival(
            picture=decoded.picture,
            index=index,
            time_s=decoded.time_s,
            arrived_s=decoded.arrived_s,
            begins_video=begins_video,
        )

    def __iter__(self) -> Iterator[Arrival]:
        """Yield the pictures until the source ends.

        Raises:
            SourceLost, ClipError: see `take`.
        """
        while True:
            try:
                arrival = self.take()
            except Ended:
                return
            if arrival is not None:
                yield arrival

    def close(self) -> None:
        """Stop reading, and wait at most `CLOSING_S` for the reading thread. Any thread may call this, repeatedly."""
        self._closed.set()
        self._source.close()
        self._waiting.close()
        self._thread.join(CLOSING_S)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        paced = self.options.realtime and not self.is_live and self.address.kind != "stdin"
        rate, schedule = self.frames_per_second or DEFAULT_RATE, Schedule()
        try:
            for index, decoded in enumerate(self._source.pictures()):
                if paced:
                    time_s = index / rate if decoded.time_s is None else decoded.time_s
                    self._closed.wait(schedule.wait_s(time_s, time.monotonic()))
                    decoded = replace(decoded, arrived_s=time.perf_counter())
                if not self._waiting.put((index, decoded)):
                    break
        except Exception as error:  # `take` raises it in the thread that takes pictures
            self._waiting.finish(error)
        else:
            self._waiting.finish()


def _connected(
    address: Address, form: Form, selection: Selection, options: FeedOptions, remarks: Remarks, notify: Notify
) -> Reconnecting:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    if form.channels not in (1, 3):
        raise ShapeError(
            f"{address.name}: pictures have 1 or 3 channels, the model takes {form.channels}; give arrays as .npz"
        )
    return Reconnecting(
        address,
        form,
        selection,
        silence_s=options.silence_s,
        attempts=options.attempts,
        remarks=remarks,
        notify=notify,
    )
