"""Streams, and requests that wait for their turn."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.batching import Batch, Member
from e3d_deploy.runtime.renewal import Renewal
from e3d_deploy.runtime.streams.counters import Counters
from e3d_deploy.runtime.streams.waiting import Bell, Reply

LAST = 256
"""Number of recent pictures, and of recent forecasts, that percentiles of one stream cover."""
CLOSED = "stream: used after it was closed; open another"


@dataclass(eq=False, slots=True)
class Video:
    """Stream, as the thread that steps it sees it.

    Callers append to `pictures` and `requests`, count `newest` and set `closed`; all else is the thread's.
    """

    renewal: Renewal
    members: list[Member] = field(default_factory=list)
    """Its states, the oldest first; of a stream that replays, the one that the last forecast made of its frames."""
    frames: "deque[Frame]" = field(default_factory=deque)
    """Last pictures of a stream that replays them."""
    changes: int = 0
    """Number of pictures, resets and restores so far."""
    counters: Counters = field(default_factory=lambda: Counters(LAST))
    pictures: "deque[Push]" = field(default_factory=deque)
    """Pictures that wait, the oldest first."""
    requests: "deque[Forecast | Job]" = field(default_factory=deque)
    """Forecasts and jobs that wait, the oldest first."""
    newest: int = 0
    """Number of the picture that was pushed last; see `Push.number`."""
    room: Bell = field(default_factory=Bell)
    """Rings when something that waited was taken or dropped."""
    prediction: NDArray[np.float32] | None = None
    """Prediction after the last good picture, [1, C, H, W]; of a stream that replays, None until a forecast made it."""
    pushed: int = 0
    """Number of pictures seen."""
    stepped: int = 0
    """The number of the next picture: those in the state, and those whose step went wrong."""
    forecast: "Forecast | None" = None
    """Forecast on its way; the next one waits for it."""
    failure: StreamError | None = None
    closed: bool = False


class Gone(ref[Any]):
    """Weak reference that becomes a message once the object of the user is gone, without Python code in between.

    Args:
        owner: a `SlotStream` with its video, or `Streams` with None.
        tell: called with this reference.
    """

    __slots__ = ("video",)
    video: Video | None

    def __new__(cls, owner: object, tell: Callable[[Any], object], video: Video | None) -> "Gone":
        gone = super().__new__(cls, owner, tell)
        gone.video = video
        return gone

    def __init__(self, owner: object, tell: Callable[[Any], object], video: Video | None) -> None:
        super().__init__(owner, tell)  # type: ignore[call-arg]  # of `ref`, whose stub has none


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
    number: int
    """Pictures of a stream count up; gaps mean nothing."""
    rows: list[Row] = field(default_factory=list)
    """One for each state that sees it, the oldest first."""
    started: float | None = None
    """Time at which its first step began (s, of `time.perf_counter`); None before."""
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
    """Frames or pictures, in memory of its own: the caller may have given up before it is whole."""
    came: float
    reply: "Reply[NDArray[Any]]" = field(default_factory=Reply)
    turn: int = 0
    """Number of the last picture that it is to have seen."""
    number: int = 0
    """Number of frames forecast so far."""
    context: "deque[Frame]" = field(default_factory=deque)
    """Pictures of a stream that replays which are still to be seen."""
    changes: int = 0
    """`Video.changes` when it began."""
    member: Member = field(init=False)
    seen: Frame = field(init=False)


@dataclass(eq=False, slots=True)
class Job:
    """Function that is called in a stream's turn."""

    video: Video
    function: Callable[[], Any]
    came: float
    drops: bool = False
    """Pictures and forecasts before it are dropped, rather than done."""
    reply: "Reply[Any]" = field(default_factory=Reply)
    turn: int = 0
    """Number of the last picture that it is to have seen."""
    _claims: dict[None, str] = field(default_factory=dict)

    def claim(self, by: Literal["thread", "caller"]) -> bool:
        """Claim the job, for the thread that does it or for the caller who gives it up; True for whoever came first."""
        return self._claims.setdefault(None, by) == by


@dataclass(frozen=True, slots=True)
class AtExit:
    """Message of the thread that runs exit handlers, the only one that is heard then."""

    message: "Push | Forecast | Job | Video"
