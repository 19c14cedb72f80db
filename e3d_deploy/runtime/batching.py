"""Assigns the states of streams to rows of batches and steps them together.

A batch is a backend state with one or more rows. Each row contains one state of a stream or of a forecast in progress.
That state is a member of the batch; the batch and the row are the member's place. If the next step is for exactly the
members of one batch, the batch is stepped as it is. Otherwise the rows of the members are copied into a new backend
state first. After the step, the members move to the batch of the result. Members that remain in a batch with unused
rows are moved to batches of one row, so that the memory of the unused rows can be reused. Only one thread uses these
classes.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Backend, Frame, State, step_size

log = logging.getLogger(__name__)


class Batch:
    """Backend state, and the members in its rows.

    Args:
        size: number of rows of the state.
        rows: number of rows that were stepped for members; the remaining rows are padding.
    """

    __slots__ = ("members", "rows", "size", "state")

    def __init__(self, state: State, size: int = 1, rows: int = 1) -> None:
        self.state, self.size, self.rows = state, size, rows
        self.members: dict[Member, int] = {}
        """Members of the batch, each with its row; a plain `Place` is not recorded."""

    @property
    def is_partly_empty(self) -> bool:
        """True if some rows have a member and some do not; padding is not counted."""
        return 0 < len(set(self.members.values())) < self.rows


class Place:
    """Row of a batch, which contains one state.

    Several places may share a row: a forecast begins at the place of its stream's state.
    """

    __slots__ = ("batch", "row")

    def __init__(self, batch: Batch, row: int = 0) -> None:
        self.batch, self.row = batch, row


class Member(Place):
    """Place of a state of a stream or a forecast. The batch records it, so that `tidy` can move it to another batch."""

    __slots__ = ()

    def __init__(self, batch: Batch, row: int = 0) -> None:
        super().__init__(batch, row)
        batch.members[self] = row


NOWHERE = Batch(None)
"""Batch of members that have left their batch and entered no other."""


class Runner(Protocol):
    """Row of the next step: the place of a state, and the picture or frame that the state sees."""

    @property
    def member(self) -> Place: ...
    @property
    def seen(self) -> Frame:
        """Next picture or frame, with a leading axis of length 1."""
        ...


R = TypeVar("R", bound=Runner)


class Batcher:
    """Steps members in groups of the sizes that the backend supports.

    Args:
        shares: keep the initial state in memory and share it between all new members. This is useful for many streams;
            for a single stream, False saves the memory of the initial state.

    Raises:
        ConfigError: the backend cannot step a single stream.
    """

    def __init__(self, backend: Backend, config: ModelConfig, *, shares: bool = True) -> None:
        if 1 not in backend.sizes:
            raise ConfigError(
                f"{backend.name}: steps {', '.join(map(str, backend.sizes))} streams at once, but not a single stream; "
                "export the bundle, or build its engine, for 1 stream as well"
            )
        self.backend, self.config = backend, config
        self.blank = backend.initial_state(1) if shares else None
        self.gathered = 0
        """Number of rows copied so far."""
        self.touched: set[Batch] = set()
        """Batches with rows that members have left, or never moved to, since the last `tidy`."""
        self._buffers: dict[tuple[int, bool], NDArray[Any]] = {}

    def batch(self, state: State | None = None) -> Batch:
        """Return a batch of one row with the given state, or with the initial state if `state` is None."""
        if state is None:
            state = self.backend.initial_state(1) if self.blank is None else self.blank
        return Batch(state)

    def place(self) -> Place:
        """Return a place in the initial state."""
        return Place(self.batch())

    def member(self) -> Member:
        """Return a member in the initial state."""
        return Member(self.batch())

    def move(self, member: Member, batch: Batch, row: int = 0) -> None:
        """Move a member to a row of another batch."""
        self.leave(member)
        member.batch, member.row = batch, row
        batch.members[member] = row

    def leave(self, member: Member) -> None:
        """Remove a member from its batch; a second call does nothing."""
        if member.batch.members.pop(member, None) is not None and member.batch.members:
            self.touched.add(member.batch)
        member.batch = NOWHERE

    def alone(self, member: Place) -> State:
        """Return the state of one member as a backend state with one row."""
        if member.batch.size == 1:
            return member.batch.state
        self.gathered += 1
        return self.backend.gather([(member.batch.state, member.row)])

    def split(self, runners: Sequence[R]) -> Iterator[list[R]]:
        """Yield groups of runners, each group to be stepped together.

        Runners of the largest batch come first, so that the members of that batch stay together. Batches of equal size
        are ordered by their first position in `runners`, and runners of one batch by their rows.
        """
        came = {one.member.batch: number for number, one in reversed(list(enumerate(runners)))}
        ready = sorted(runners, key=lambda one: (-one.member.batch.rows, came[one.member.batch], one.member.row))
        while ready:
            count = step_size(self.backend, len(ready))
            yield ready[:count]
            del ready[:count]

    def step(self, runners: Sequence[Runner]) -> tuple[NDArray[np.float32], Batch]:
        """Step a group of runners that `split` yielded; the runners stay in their old places.

        Returns:
            The predictions, [B, C, H, W], and the batch after the step. Row i of both belongs to runner i; if the step
            is padded, B exceeds the number of runners. `move` moves a member to its new row.
        """
        size = step_size(self.backend, len(runners))
        prediction, state = self.backend.step(self._seen(runners, size), self._state(runners, size))
        return prediction, Batch(state, size, len(runners))

    def _state(self, runners: Sequence[Runner], size: int) -> State:
        members = [runner.member for runner in runners]
        batch = members[0].batch
        theirs = all(member.batch is batch and member.row == row for row, member in enumerate(members))
        if theirs and batch.size == size and batch.rows == len(members):
            return batch.state
        rows = [(member.batch.state, member.row) for member in members]
        self.gathered += len(rows)
        return self.backend.gather(rows + rows[-1:] * (size - len(rows)))

    def _seen(self, runners: Sequence[Runner], size: int) -> Frame:
        if size == 1 or not isinstance(runners[0].seen, np.ndarray):
            # There is one row, or a picture on a GPU. All runners share that picture, because they are states of one
            # stream: only a plain stream accepts pictures on a GPU.
            return runners[0].seen
        pictures = all(runner.seen.dtype == np.uint8 for runner in runners)
        buffer = self._buffer(size, pictures)
        for row, runner in enumerate(runners):
            buffer[row] = runner.seen[0] if pictures else as_frames(runner.seen, self.config)[0]
        buffer[len(runners) :] = buffer[len(runners) - 1]
        return buffer

    def _buffer(self, size: int, pictures: bool) -> NDArray[Any]:
        if (size, pictures) not in self._buffers:
            sides, C = self.config.image_size, self.config.channels
            shape = (size, *sides, C) if pictures else (size, C, *sides)
            self._buffers[size, pictures] = np.empty(shape, np.uint8 if pictures else np.float32)
        return self._buffers[size, pictures]

    def close(self) -> None:
        """Free the shared initial state and forget all batches."""
        self.blank = None
        self.touched.clear()

    def tidy(self, stepped_next: Collection[Member] = ()) -> None:
        """Move the members of batches with unused rows to batches of their own.

        Args:
            stepped_next: members that stay where they are, because their next step moves them anyway.
        """
        touched, self.touched = self.touched, set()
        for batch in touched:
            try:
                for member in set(batch.members).difference(stepped_next) if batch.is_partly_empty else ():
                    self.move(member, Batch(self.alone(member)))
            except Exception as error:  # Memory may run out, for example. The members then stay in this batch, intact.
                self.touched.discard(batch)
                with suppress(Exception):  # An error in a log handler must not end the thread of the streams.
                    log.warning(
                        "streams: memory for %d rows stays in use for %d states, which could not be copied out (%s)",
                        batch.rows,
                        len(batch.members),
                        str(error),
                    )
                continue
            self.touched.discard(batch)
            if batch.is_partly_empty:  # A member of `stepped_next` stays if its step fails, so check the batch again.
                self.touched.add(batch)
