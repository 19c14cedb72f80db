"""Streams as sets of states of different ages, stepped with one picture each: all of them, or none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.batching import Batch, Batcher, Member
from e3d_deploy.runtime.faults import clear
from e3d_deploy.runtime.renewal import Renewal


@dataclass(eq=False)
class Aged:
    """States of a stream that keeps states."""

    renewal: Renewal
    members: list[Member] = field(default_factory=list)
    """The oldest first."""
    pushed: int = 0
    """Number of pictures seen."""


@dataclass(eq=False)
class _Row:
    """State that a step is to move on."""

    stream: Aged
    member: Member
    seen: Any
    prediction: NDArray[np.float32] | None = None
    after: tuple[Batch, int] | None = None
    """Batch and row of the state after the step."""


def next_members(batcher: Batcher, renewal: Renewal, pushed: int, members: Sequence[Member]) -> list[Member]:
    """Return the states of a stream that see its next picture, the oldest first.

    Args:
        pushed: pictures that the stream has seen.
        members: its states so far.
    """
    kept = list(members[1:] if renewal.ends(pushed) else members)
    return [*kept, batcher.member()] if renewal.begins(pushed) else kept


def advance(batcher: Batcher, streams: Sequence[Aged], seen: Sequence[Any]) -> list[NDArray[np.float32]]:
    """Step all states of streams, each with the picture of its stream; nothing has changed if it fails.

    Returns:
        The prediction of the oldest state of each stream, [1, C, H, W].

    Raises:
        ResourceLimit: out of memory.
        StreamError: a prediction is not finite.
    """
    rows_of = [
        [_Row(stream, one, picture) for one in next_members(batcher, stream.renewal, stream.pushed, stream.members)]
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
    answers = []
    for stream, own in zip(streams, rows_of, strict=True):
        for ended in set(stream.members).difference(row.member for row in own):
            batcher.leave(ended)
        for row in own:
            assert row.after is not None
            batcher.move(row.member, *row.after)
        stream.members, stream.pushed = [row.member for row in own], stream.pushed + 1
        assert own[0].prediction is not None
        answers.append(own[0].prediction.copy() if len(rows) > 1 else own[0].prediction)
    batcher.tidy()
    return answers


def grown(batcher: Batcher, states: contract.States, renewal: Renewal, pushed: int) -> Aged:
    """Return a stream whose states are as old as after so many pictures, without stepping it there.

    The content of its states is zeros: it is for measuring the time of steps.
    """
    aged = (batcher.backend.from_arrays(states.grown(age)) for age in renewal.ages(pushed))
    return Aged(renewal, [Member(batcher.batch(state)) for state in aged], pushed)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise failures of a library as errors of ours."""
    try:
        yield
    except Exception as error:
        if (cleared := clear(error)) is error:
            raise
        raise cleared from error
