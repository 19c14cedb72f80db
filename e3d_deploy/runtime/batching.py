"""Assigns streams to rows of batched states and steps them together.

A backend's state is that of a few streams. Whoever is stepped, a stream or a forecast on its way, is a member of one.
If just the members of one state are stepped again, it is stepped as it is; otherwise their rows are copied into a
new one. Whoever is left in a state that others have moved on from gets a state of its own, so that no stream keeps
the memory of others. One thread calls all of this.
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
    """A state and its members.

    Args:
        size: rows of the state.
        rows: how many of them are members'; the rest are copies that fill it up.
    """

    __slots__ = ("members", "rows", "size", "state")

    def __init__(self, state: State, size: int = 1, rows: int = 1) -> None:
        self.state, self.size, self.rows = state, size, rows
        self.members: dict[Member, int] = {}
        """Streams and forecasts in it, each with its row; a plain `Place` is not among them."""

    @property
    def left(self) -> bool:
        """True if some of its rows, but not all, have lost their members."""
        return 0 < len(set(self.members.values())) < self.rows


class Place:
    """Row of a state; several may share one, such as a forecast and its stream."""

    __slots__ = ("batch", "row")

    def __init__(self, batch: Batch, row: int = 0) -> None:
        self.batch, self.row = batch, row


class Member(Place):
    """Stream or forecast in a place; its state knows it, so that whoever is left behind can be moved out."""

    __slots__ = ()

    def __init__(self, batch: Batch, row: int = 0) -> None:
        super().__init__(batch, row)
        batch.members[self] = row


NOWHERE = Batch(None)


class Runner(Protocol):
    """Candidate for the next step, with its place in a state and its next picture or frame."""

    @property
    def member(self) -> Place: ...
    @property
    def seen(self) -> Frame:
        """Its next picture or frame, with an axis of length 1 in front."""
        ...


R = TypeVar("R", bound=Runner)


class Batcher:
    """Steps members of states, as many at once as a backend takes.

    Args:
        shares: keep the state before the first frame for all members that begin, as many streams want; a single one
            would hold it for nothing.

    Raises:
        ConfigError: the backend cannot step one stream alone.
    """

    def __init__(self, backend: Backend, config: ModelConfig, *, shares: bool = True) -> None:
        if 1 not in backend.sizes:
            raise ConfigError(
                f"{backend.name}: steps {', '.join(map(str, backend.sizes))} streams at once and never one; "
                "export the bundle, or build its engine, for one as well"
            )
        self.backend, self.config = backend, config
        self.blank = backend.initial_state(1) if shares else None
        self.gathered = 0
        """Rows that were copied."""
        self.touched: set[Batch] = set()
        """Whom members left since the last `tidy`."""
        self._buffers: dict[tuple[int, bool], NDArray[Any]] = {}

    def batch(self, state: State | None = None) -> Batch:
        """Return a batch of one row; without a state that before the first frame."""
        if state is None:
            state = self.backend.initial_state(1) if self.blank is None else self.blank
        return Batch(state)

    def place(self) -> Place:
        """Return a place before the first frame."""
        return Place(self.batch())

    def member(self) -> Member:
        """Somebody before the first frame."""
        return Member(self.batch())

    def move(self, member: Member, batch: Batch, row: int = 0) -> None:
        """Put a member into another state."""
        self.leave(member)
        member.batch, member.row = batch, row
        batch.members[member] = row

    def leave(self, member: Member) -> None:
        """Take a member out of its state, for good unless it is moved; leaving twice does nothing."""
        if member.batch.members.pop(member, None) is not None and member.batch.members:
            self.touched.add(member.batch)
        member.batch = NOWHERE

    def alone(self, member: Place) -> State:
        """The state of one member, of one row."""
        if member.batch.size == 1:
            return member.batch.state
        self.gathered += 1
        return self.backend.gather([(member.batch.state, member.row)])

    def split(self, runners: Sequence[R]) -> Iterator[list[R]]:
        """Yield groups of runners that are stepped together.

        Those of the largest state come first, so that its members stay together; states of equal size come in order of
        arrival, and members of one state in order of their rows.
        """
        came = {one.member.batch: number for number, one in reversed(list(enumerate(runners)))}
        ready = sorted(runners, key=lambda one: (-one.member.batch.rows, came[one.member.batch], one.member.row))
        while ready:
            count = step_size(self.backend, len(ready))
            yield ready[:count]
            del ready[:count]

    def step(self, runners: Sequence[Runner]) -> tuple[NDArray[np.float32], Batch]:
        """The predictions of those that `split` put together, [B, C, H, W] and more where the step was filled up, and
        the state after it, in which each may take the row of its number. They stay where they are until moved."""
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
            return runners[0].seen  # on a GPU: the one picture that all states of a stream see
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
        """Let go of all states."""
        self.blank = None
        self.touched.clear()

    def tidy(self, stepped_next: Collection[Member] = ()) -> None:
        """Give those who are left in a state that others moved on from one of their own; not those who are stepped
        next, as they leave it then."""
        touched, self.touched = self.touched, set()
        for batch in touched:
            try:
                for member in set(batch.members).difference(stepped_next) if batch.left else ():
                    self.move(member, Batch(self.alone(member)))
            except Exception as error:  # no memory; they stay where they are, and nothing is lost
                self.touched.discard(batch)
                with suppress(Exception):  # a handler of the program's, which is not to end the thread of the streams
                    log.warning(
                        "%d streams stay in a state of %d rows (%s)", len(batch.members), batch.rows, str(error)
                    )
                continue
            self.touched.discard(batch)
            if batch.left:  # whoever is stepped next may fail, and stay
                self.touched.add(batch)
