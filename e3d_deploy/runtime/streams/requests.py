"""Records exchanged between callers and the thread that steps the streams: streams, pictures, forecasts and jobs."""

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
"""The percentiles of one stream cover this number of its most recent pictures, and the same number of its forecasts."""
CLOSED = "stream: used after it was closed; open another"


@dataclass(eq=False, slots=True)
class ScheduledStream:
    """State, queues and counters of one stream; `SlotStream` is the user's handle to the stream.

    Callers append to `pictures` and `requests`, remove pictures from a full queue, count pictures that they drop or
    refuse, increment `newest`, and set `closed`. Only the thread that steps the streams makes all other changes.
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
    """Wakes callers that wait for room in one of the queues."""
    prediction: NDArray[np.float32] | None = None
    """Prediction after the last good picture, [1, C, H, W]; with `replay`, None until a forecast computes it."""
    pushed: int = 0
    """Number of pictures that the stream has seen; pictures in the queue are not counted."""
    stepped: int = 0
    """Index of the next picture in errors and logs: `pushed`, plus the number of pictures whose step failed or whose
    prediction was not finite."""
    forecast: "Forecast | None" = None
    """Forecast in progress; the next forecast begins after this one has ended."""
    failure: StreamError | None = None
    closed: bool = False


class Gone(ref[Any]):
    """Weak reference to a user's object, which reports to the thread that the object was freed.

    When the object is freed, Python passes this reference to `tell`, which puts it into `Queues.mailbox`. `tell` is
    written in C, so no Python code runs that could fail or be interrupted.

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
    """Row of the next step: a picture or a forecast, with the batch and row of one of its states.

    A picture has one row for each state of its stream. A forecast has one row.
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
    """Pushed picture; the record exists until the picture has been stepped or dropped."""

    stream: ScheduledStream
    seen: Frame
    came: float
    """Time of the push (s, of `time.perf_counter`)."""
    deadline: float
    """Time by which the first step must begin (s, of `time.perf_counter`)."""
    number: int
    """Number of the picture within its stream. Numbers increase, but an interrupted push may leave a gap."""
    rows: list[Row] = field(default_factory=list)
    """One row for each state that sees the picture, oldest state first."""
    started: float | None = None
    """Time at which the first step began (s, of `time.perf_counter`); None before that step."""
    prediction: NDArray[np.float32] | None = None
    """Prediction of the oldest state that sees the picture, [1, C, H, W]."""
    finite: bool = True
    """False once a prediction of a state is not finite."""
    over: bool = False
    """True once the picture was dropped or one of its steps failed; its remaining rows are not stepped."""


@dataclass(eq=False, slots=True)
class Forecast:
    """Forecast that is queued or in progress.

    A forecast starts from the state of its stream after all pictures that were pushed before the request. Later
    pictures do not change the forecast.
    """

    stream: ScheduledStream
    result: NDArray[Any]
    """Frames or pictures of the forecast.

    This is never the caller's own array: a caller that stops waiting may reuse its array while the forecast continues.
    """
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
    """Place of the forecast's own state; set when the forecast begins."""
    seen: Frame = field(init=False)
    """Frame or picture that the next step takes."""


@dataclass(eq=False, slots=True)
class Job:
    """Function that the thread calls in the order of the stream's requests.

    Earlier pictures are done by then, and earlier forecasts have begun, but may still be in progress.
    """

    stream: ScheduledStream
    function: Callable[[], Any]
    came: float
    """Time of the request (s, of `time.perf_counter`)."""
    drops: bool = False
    """True if the pictures and forecasts requested earlier are dropped instead of being done first."""
    reply: "Reply[Any]" = field(default_factory=Reply)
    turn: int = 0
    """`Push.number` of the last picture that must be done before this request."""
    _claims: dict[None, str] = field(default_factory=dict)

    def claim(self, by: Literal["thread", "caller"]) -> bool:
        """Claim the job for the thread, which is about to run it, or for the caller, which has stopped waiting.

        Returns:
            True if `by` was the first to claim the job; later claims by the other side return False.
        """
        return self._claims.setdefault(None, by) == by


@dataclass(frozen=True, slots=True)
class AtExit:
    """Message from the thread that runs exit handlers.

    During interpreter shutdown, messages about pictures, forecasts and streams from all other threads are ignored.
    """

    message: "Push | Forecast | Job | ScheduledStream"
