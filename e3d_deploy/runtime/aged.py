"""A stream as a set of states of different ages, and the step that advances all states of several streams.

The step returns new streams. If the step fails, the old streams are unchanged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.batching import Batch, Batcher, Member, Place
from e3d_deploy.runtime.faults import translated_errors
from e3d_deploy.runtime.renewal import Renewal

P = TypeVar("P", bound=Place)


@dataclass(frozen=True, eq=False)
class Aged:
    """States of a stream after a number of pictures. Immutable: `advance` returns new objects."""

    renewal: Renewal
    places: tuple[Place, ...] = ()
    """Places of the states, oldest first."""
    pushed: int = 0
    """Number of pictures that the stream has seen."""
    prediction: NDArray[np.float32] | None = None
    """Prediction of the oldest state, [1, C, H, W]; None before the first picture."""


class _Row:
    """One row of a step: a state of a stream, and the picture that the state sees."""

    __slots__ = ("after", "member", "prediction", "seen", "stream")

    def __init__(self, stream: Aged, member: Place, seen: Any) -> None:
        self.stream, self.member, self.seen = stream, member, seen
        self.prediction: NDArray[np.float32]
        self.after: tuple[Batch, int]
        """Batch and row of the next state."""


def next_members(batcher: Batcher, renewal: Renewal, pushed: int, members: Sequence[Member]) -> list[Member]:
    """Return the states of a stream that see its next picture, oldest first.

    The renewal may drop the oldest state and add a new one.

    Args:
        pushed: number of pictures that the stream has seen.
        members: states of the stream so far, oldest first.
    """
    return _next(renewal, pushed, members, batcher.member)


def _next(renewal: Renewal, pushed: int, places: Sequence[P], new: Callable[[], P]) -> list[P]:
    kept = list(places[1:] if renewal.ends(pushed) else places)
    return [*kept, new()] if renewal.begins(pushed) else kept


def advance(batcher: Batcher, streams: Sequence[Aged], seen: Sequence[Any]) -> list[Aged]:
    """Step all states of some streams, each with the picture of its stream, and return the streams after the step.

    The given streams do not change, so that an interrupted caller can continue with them.

    Args:
        seen: next picture of each stream, in the order of `streams`.

    Raises:
        ResourceLimit: there is not enough memory.
        StreamError: a prediction is not finite.
    """
    rows_of = [
        [_Row(stream, one, picture) for one in _next(stream.renewal, stream.pushed, stream.places, batcher.place)]
        for stream, picture in zip(streams, seen, strict=True)
    ]
    rows = [row for own in rows_of for row in own]
    for together in batcher.split(rows):
        with translated_errors():
            predictions, batch = batcher.step(together)
        for number, row in enumerate(together):
            row.prediction, row.after = predictions[number : number + 1], (batch, number)
            if not np.isfinite(row.prediction).all():
                raise StreamError(
                    f"frame {row.stream.pushed}: the prediction is not finite; reset the stream, or export with "
                    "another precision"
                )
    return [
        Aged(
            stream.renewal,
            tuple(Place(*row.after) for row in own),
            stream.pushed + 1,
            # A copy, because a view would keep the predictions of all rows in memory.
            own[0].prediction.copy() if len(rows) > 1 else own[0].prediction,
        )
        for stream, own in zip(streams, rows_of, strict=True)
    ]


def aged_stream(batcher: Batcher, states: contract.States, renewal: Renewal, pushed: int) -> Aged:
    """Return a stream whose states have the ages that they reach after `pushed` pictures, without stepping it.

    All tensors except the counters of the rings are zero, so the stream is only good for timing steps.
    """
    aged = (batcher.backend.from_arrays(states.zeros_after(age)) for age in renewal.ages(pushed))
    return Aged(renewal, tuple(Place(batcher.batch(state)) for state in aged), pushed)
