"""Records that callers and the thread that steps the streams exchange: streams, pictures, forecasts and jobs."""

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
"""Number of the most recent pictures, and of forecasts, that the percentiles of one stream cover."""
CLOSED = "stream: used after it was closed; open another"


@dataclass(eq=False, slots=True)
class ScheduledStream:
    """State, queues and counters of one stream; `SlotStream` is the user's handle to it.

    Callers append to `pictures` and `requests`, count up `newest`, and set `closed`. Only the thread that steps the
    streams changes the other fields.
    """

    renewal: Renewal
    members: list[Member] = field(default_factory=list)
    """States of the stream, oldest first; with `replay`, the state that the last forecast computed from `frames`."""
    frames: "deque[Frame]" = field(default_factory=deque)
    """Pictures that the next forecast replays, oldest first; empty unless the renewal is `replay`."""
    changes: int = 0
    """Number of times that a picture, a reset, a restore or a fork changed the stream."""
    counters: Counters = field(default_factory=lambda: Counters(LAST))
    pictures: "deque[Push]" = field(default_factory=deque)
    """Queued pictures, oldest first."""
    requests: "deque[Forecast | Job]" = field(default_factory=deque)
    """Queued forecasts and jobs, oldest first."""
    newest: int = 0
    """`Push.number` of the picture that was pushed last."""
    room: Bell = field(default_factory=Bell)
    """Rings when a picture or a request leaves its queue."""
    prediction: NDArray[np.float32] | None = None
    """Prediction after the last good picture, [1, C, H, W]; with `replay`, None until a forecast computes it."""
    pushed: int = 0
    """Number of pictures that the state has seen."""
    stepped: int = 0
    """Index of the next picture in errors and logs: `pushed`, plus the pictures whose step failed."""
    forecast: "Forecast | None" = None
    """Forecast in progress; the next forecast begins after it."""
    failure: StreamError | None = None
    closed: bool = False


class Gone(ref[Any]):
    """Weak reference to a user's object that is put into the mailbox when the object is dropped.

    The garbage collector calls `tell`, a function written in C, directly: no Python code runs that could fail or be
    interrupted.

    Args:
        owner: the user's object: a `SlotStream`, or `Streams`.
        tell: function that is called with this reference.
        stream: stream of the `SlotStream`; None for `Streams`.
    """

    __slots__ = ("stream",)
    stream: ScheduledStream | None

    def __new__(cls, owner: object, tell: Callable[[Any], object], stream: ScheduledStream | None) -> "Gone":
        gone = super().__new__(cls, owner, tell)
        gone.stream = stream
        return gone

    def __init__(self, owner: object, tell: Callable[[Any], object], stream: ScheduledStream | None) -> None:
        super().__init__(owner, tell)  # type: ignore[call-arg]  # The stub of `ref` declares no arguments.


@dataclass(eq=False, slots=True)
class Row:
    """State that a step is to advance.

    A picture has one row for each state of its stream, a forecast has one row.
    """

    owner: "Push | Forecast"
    member: Member
    after: tuple[Batch, int] | None = None
    """Batch and row of the next state; None before the step."""

    @property
    def seen(self) -> Frame:
        return self.owner.seen


@dataclass(eq=False, slots=True)
class Push:
    """Picture that was pushed, from its queue to the end of its steps."""

    stream: ScheduledStream
    seen: Frame
    came: float
    """Time of the push (s, of `time.perf_counter`)."""
    deadline: float
    """Time by which the first step must begin (s, of `time.perf_counter`)."""
    number: int
    """Number that increases from picture to picture of a stream; numbers may be left out."""
    rows: list[Row] = field(default_factory=list)
    """One row for each state that sees the picture, oldest state first."""
    started: float | None = None
    """Time at which the first step began (s, of `time.perf_counter`); None before."""
    prediction: NDArray[np.float32] | None = None
    """Prediction of the oldest state that sees the picture, [1, C, H, W]."""
    finite: bool = True
    """False once a prediction of a state is not finite."""
    over: bool = False
    """True once the picture was dropped or one of its steps failed; its other rows are not stepped."""


@dataclass(eq=False, slots=True)
class Forecast:
    """Forecast that is queued or in progress.

    A forecast starts from the state that its stream has when the forecast's turn comes. Later pictures do not change
    it.
    """

    stream: ScheduledStream
    result: NDArray[Any]
    """Frames or pictures of the forecast, in memory that only this object uses: the caller may give up early."""
    came: float
    """Time of the request (s, of `time.perf_counter`)."""
    reply: "Reply[NDArray[Any]]" = field(default_factory=Reply)
    turn: int = 0
    """`Push.number` of the last picture that must be done before this request."""
    number: int = 0
    """Number of frames forecast so far."""
    context: "deque[Frame]" = field(default_factory=deque)
    """Pictures of a `replay` stream that the forecast has not seen yet, oldest first."""
    changes: int = 0
    """`ScheduledStream.changes` when the forecast began."""
    member: Member = field(init=False)
    """Place of the forecast's own state; set when it begins."""
    seen: Frame = field(init=False)
    """Frame or picture that the next step takes."""


@dataclass(eq=False, slots=True)
class Job:
    """Function that the thread calls when the stream has done everything that was requested before."""

    stream: ScheduledStream
    function: Callable[[], Any]
    came: float
    """Time of the request (s, of `time.perf_counter`)."""
    drops: bool = False
    """True if pictures and forecasts that were requested before are dropped, and not done first."""
    reply: "Reply[Any]" = field(default_factory=Reply)
    turn: int = 0
    """`Push.number` of the last picture that must be done before this request."""
    _claims: dict[None, str] = field(default_factory=dict)

    def claim(self, by: Literal["thread", "caller"]) -> bool:
        """Claim the job for the thread, which will do it, or for the caller, which gives it up.

        Returns:
            True if `by` has claimed the job first; a job belongs to its first claimant.
        """
        return self._claims.setdefault(None, by) == by


@dataclass(frozen=True, slots=True)
class AtExit:
    """Message from the thread that runs exit handlers; at the end of Python, other messages are ignored."""

    message: "Push | Forecast | Job | ScheduledStream"
