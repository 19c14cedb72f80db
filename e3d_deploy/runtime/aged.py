"""Streams as sets of states of different ages, stepped with one picture each: all of them, or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.batching import Batch, Batcher, Member, Place
from e3d_deploy.runtime.faults import plain_errors
from e3d_deploy.runtime.renewal import Renewal

P = TypeVar("P", bound=Place)


@dataclass(frozen=True, eq=False)
class Aged:
    """Stream that keeps states, at one moment: the next picture makes another one of it, or nothing happens."""

    renewal: Renewal
    places: tuple[Place, ...] = ()
    """Its states, the oldest first."""
    pushed: int = 0
    """Number of pictures seen."""
    prediction: NDArray[np.float32] | None = None
    """Prediction of the oldest state, [1, C, H, W]; None before the first picture."""


class _Row:
    """State that a step is to move on."""

    __slots__ = ("after", "member", "prediction", "seen", "stream")

    def __init__(self, stream: Aged, member: Place, seen: Any) -> None:
        self.stream, self.member, self.seen = stream, member, seen
        self.prediction: NDArray[np.float32]
        self.after: tuple[Batch, int]
        """Batch and row of the state after the step."""


def next_members(batcher: Batcher, renewal: Renewal, pushed: int, members: Sequence[Member]) -> list[Member]:
    """Return the states of a stream that see its next picture, the oldest first.

    Args:
        pushed: pictures that the stream has seen.
        members: its states so far.
    """
    return _next(renewal, pushed, members, batcher.member)


def _next(renewal: Renewal, pushed: int, places: Sequence[P], new: Callable[[], P]) -> list[P]:
    kept = list(places[1:] if renewal.ends(pushed) else places)
    return [*kept, new()] if renewal.begins(pushed) else kept


def advance(batcher: Batcher, streams: Sequence[Aged], seen: Sequence[Any]) -> list[Aged]:
    """Step all states of streams, each with the picture of its stream, and return the streams after it.

    The streams that come in stay as they are: whoever is interrupted still has them.

    Raises:
        ResourceLimit: out of memory.
        StreamError: a prediction is not finite.
    """
    rows_of = [
        [_Row(stream, one, picture) for one in _next(stream.renewal, stream.pushed, stream.places, batcher.place)]
        for stream, picture in zip(streams, seen, strict=True)
    ]
    rows = [row for own in rows_of for row in own]
    for together in batcher.split(rows):
        with plain_errors():
            predictions, batch = batcher.step(together)
        for number, row in enumerate(together):
            row.prediction, row.after = predictions[number : number + 1], (batch, number)
            if not np.isfinite(row.prediction).all():
                raise StreamError(
                    f"frame {row.stream.pushed}: the prediction is not finite; reset the stream, check the precision"
                )
    return [
        Aged(
            stream.renewal,
            tuple(Place(*row.after) for row in own),
            stream.pushed + 1,
            own[0].prediction.copy() if len(rows) > 1 else own[0].prediction,  # a view would keep those of all
        )
        for stream, own in zip(streams, rows_of, strict=True)
    ]


def grown(batcher: Batcher, states: contract.States, renewal: Renewal, pushed: int) -> Aged:
    """Return a stream whose states are as old as after so many pictures, without stepping it there.

    The content of its states is zeros: it is for measuring the time of steps.
    """
    aged = (batcher.backend.from_arrays(states.grown(age)) for age in renewal.ages(pushed))
    return Aged(renewal, tuple(Place(batcher.batch(state)) for state in aged), pushed)
