"""Pictures of any source, read in a thread of its own into a bounded queue."""

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
"""Time that closing waits for the reading thread (s); it goes on alone where a library blocks it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrival:
    """Picture of a source, as it came."""

    picture: NDArray[np.uint8]
    """[H, W, C], as the model takes it."""
    index: int
    """Number among the selected pictures since the source was opened, from 0; dropped ones count."""
    time_s: float | None
    """Time by the source's own clock (s); None where it tells none."""
    came_s: float
    """Value of `time.perf_counter()` when it was decoded; of a recording that plays at its rate, when it was due."""
    begins: bool
    """True for the first picture, and the first after a reconnect or a change of size: nothing leads to it."""


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """Way in which a source is read.

    Raises:
        ConfigError: a value that cannot work.
    """

    policy: Literal["block", "drop-oldest"] | None = None
    """Way in which a full queue takes the next picture; None: `drop-oldest` for a live source, else `block`."""
    queue_length: int | None = None
    """Number of pictures that may wait; None: 1 for a live source, else 4."""
    silence_s: float = 10.0
    """Longest time without a picture from a camera or the network (s), after which the source counts as lost."""
    attempts: int = 5
    """Reconnects in a row without a picture before SourceLost; 0 never reconnects."""
    realtime: bool = False
    """Play what is not live at its own frame rate, else at 10 frames per second."""

    def __post_init__(self) -> None:
        if self.policy not in (None, "block", "drop-oldest"):
            raise ConfigError(f"policy: got {self.policy!r}, expected block or drop-oldest; give one of them")
        if self.queue_length is not None and self.queue_length < 1:
            raise ConfigError(f"queue_length: got {self.queue_length}, expected 1 or more; 1 keeps the newest picture")
        if not 0 < self.silence_s <= 3600:
            raise ConfigError(f"silence_s: got {self.silence_s:g}, expected above 0 and up to 3600; 10 is usual")
        if self.attempts < 0:
            raise ConfigError(f"attempts: got {self.attempts}, expected 0 or more; 0 never reconnects")


class Feed:
    """Pictures of a source, in the order in which they come.

    The source is opened at once, and that is not tried again: a camera that is not up yet is an error. Attempts count
    for a source that was open.

    Args:
        address: source.
        form: form of the pictures.
        options: queue, time limits and reconnects.
        selection: pictures that are taken; a live source is resampled by its own times, else by those of arrival.
        remarks: takes what is done to the pictures; None: remarks of its own, which are logged.
        notify: told of each reconnect, in a sentence, from the reading thread.
        stdin: stream of raw frames; None for the process's own stdin.

    Raises:
        ClipError: nothing there that can be read, or access is refused.
        SourceLost: the source cannot be reached, or does not answer.
        ConfigError: a selection that the source does not allow.
        BackendUnavailable: without the extra `video`.
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
        """True if the source waits for nobody: a camera, RTSP, and HTTP without an end."""
        self.frames_per_second = self._source.rate
        """Selected pictures per second; None where the source tells no rate."""
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
        """Number of times that the source was opened again."""
        return self._source.reconnects

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; None if none has come after the timeout. For one thread at a time.

        Raises:
            Ended: there is none any more, or the feed is closed.
            SourceLost, ClipError: the source broke off for good, after the pictures that came before.
        """
        taken = self._waiting.take(timeout_s)
        if taken is None:
            return None
        index, decoded = taken
        # Compared with the picture that was taken last, as the first one of a section may have been dropped.
        begins, self._section = decoded.section != self._section, decoded.section
        return Arrival(
            picture=decoded.picture, index=index, time_s=decoded.time_s, came_s=decoded.came_s, begins=begins
        )

    def __iter__(self) -> Iterator[Arrival]:
        """Yield the pictures until the source ends.

        Raises:
            SourceLost, ClipError: as `take`.
        """
        while True:
            try:
                arrival = self.take()
            except Ended:
                return
            if arrival is not None:
                yield arrival

    def close(self) -> None:
        """Stop reading; from any thread, more than once, and without waiting for a library that blocks."""
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
                    decoded = replace(decoded, came_s=time.perf_counter())
                if not self._waiting.put((index, decoded)):
                    break
        except Exception as error:  # whatever it is, whoever takes pictures has to know
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
        raise ShapeError(f"{address.name}: pictures have 1 or 3 colours, the model takes {form.channels}; give .npz")
    return Reconnecting(
        address,
        form,
        selection,
        silence_s=options.silence_s,
        attempts=options.attempts,
        remarks=remarks,
        notify=notify,
    )
