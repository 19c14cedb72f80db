"""Streams, and requests that wait for their turn."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.batching import Batch, Member
from e3d_deploy.runtime.renewal import Renewal
from e3d_deploy.runtime.streams.counters import Counters

LAST = 256
"""Number of recent pictures, and of recent forecasts, that percentiles of one stream cover."""
CLOSED = "stream: used after it was closed; open another"


@dataclass(eq=False, slots=True)
class Video:
    """Stream, as the thread that steps it sees it."""

    renewal: Renewal
    members: list[Member] = field(default_factory=list)
    """Its states, the oldest first; of a stream that replays, the one that the last forecast made of its frames."""
    frames: "deque[Frame]" = field(default_factory=deque)
    """Last pictures of a stream that replays them."""
    changes: int = 0
    """Number of pictures, resets and restores so far."""
    counters: Counters = field(default_factory=lambda: Counters(LAST))
    queue: "deque[Push | Forecast | Job]" = field(default_factory=deque)
    waiting: int = 0
    """Pictures in the queue."""
    prediction: NDArray[np.float32] | None = None
    """Prediction after the last good picture, [1, C, H, W]; of a stream that replays, None until a forecast made it."""
    pushed: int = 0
    """Number of pictures seen."""
    stepped: int = 0
    """The number of the next picture: those in the state, and those whose step went wrong."""
    forecast: "Forecast | None" = None
    """On its way; the next one waits for it."""
    failure: StreamError | None = None
    closed: bool = False


@dataclass(eq=False, slots=True)
class Row:
    """State that a step is to move on. A picture has one for each state of its stream, a forecast one."""

    owner: "Push | Forecast"
    member: Member
    after: tuple[Batch, int] | None = None
    """Batch and row of the state after the step."""

    @property
    def seen(self) -> Frame:
        return self.owner.seen


@dataclass(eq=False, slots=True)
class Push:
    """Picture that waits."""

    video: Video
    seen: Frame
    came: float
    deadline: float
    rows: list[Row] = field(default_factory=list)
    """One for each state that sees it, the oldest first."""
    started: float | None = None
    """When the first of its steps began."""
    prediction: NDArray[np.float32] | None = None
    """Prediction of the oldest state that sees it, [1, C, H, W]."""
    finite: bool = True
    """False once a prediction is not."""
    over: bool = False
    """True once it was dropped or a step of it failed; its other rows are not stepped."""


@dataclass(eq=False, slots=True)
class Forecast:
    """Forecast that waits, or is on its way from where its stream was then."""

    video: Video
    result: NDArray[Any]
    came: float
    future: "Future[NDArray[Any]]" = field(default_factory=Future)
    number: int = 0
    """Frames there are."""
    context: "deque[Frame]" = field(default_factory=deque)
    """Pictures of a stream that replays which are still to be seen."""
    changes: int = 0
    """`Video.changes` when it began."""
    member: Member = field(init=False)
    seen: Frame = field(init=False)


@dataclass(eq=False, slots=True)
class Job:
    """Function that is called in a stream's turn."""

    function: Callable[[], Any]
    came: float
    future: "Future[Any]" = field(default_factory=Future)


def give(future: "Future[Any]", outcome: object) -> None:
    """Set the result or exception of a future, unless it was cancelled."""
    if future.set_running_or_notify_cancel():
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
