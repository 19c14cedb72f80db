"""A stream among many, and what can be asked of it."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.backend import Frame
from e3d_deploy.runtime.batching import Member
from e3d_deploy.runtime.counters import Counters

LAST = 256
"""How many pictures percentiles of one stream are of."""
CLOSED = "stream: used after it was closed; open another"


@dataclass(eq=False, slots=True)
class Video:
    """A stream, as the thread that steps it sees it."""

    member: Member
    counters: Counters = field(default_factory=lambda: Counters(LAST))
    queue: "deque[Push | Forecast | Job]" = field(default_factory=deque)
    waiting: int = 0
    """Pictures in the queue."""
    prediction: NDArray[np.float32] | None = None
    """After the last good picture, [1, C, H, W]."""
    pushed: int = 0
    """Pictures in the state."""
    stepped: int = 0
    """The number of the next picture: those in the state, and those whose step went wrong."""
    forecast: "Forecast | None" = None
    """On its way; the next one waits for it."""
    failure: StreamError | None = None
    closed: bool = False


@dataclass(eq=False, slots=True)
class Push:
    """A picture that waits."""

    video: Video
    seen: Frame
    came: float
    deadline: float

    @property
    def member(self) -> Member:
        return self.video.member


@dataclass(eq=False, slots=True)
class Forecast:
    """A forecast that waits, or is on its way from where its stream was then."""

    video: Video
    result: NDArray[Any]
    came: float
    future: "Future[NDArray[Any]]" = field(default_factory=Future)
    number: int = 0
    """Frames there are."""
    member: Member = field(init=False)
    seen: Frame = field(init=False)


@dataclass(eq=False, slots=True)
class Job:
    """Something else that is done in a stream's turn."""

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
