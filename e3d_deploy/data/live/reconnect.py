"""Read cameras and network addresses, and reconnect when a connection is lost."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from threading import Event

from e3d_deploy.data.display import FrameConverter
from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import Address
from e3d_deploy.data.live.bounded_queue import Ended
from e3d_deploy.data.live.connection import Connection
from e3d_deploy.data.live.decoding import Decoded
from e3d_deploy.data.live.source import DecodedPicture
from e3d_deploy.data.live.source_problem import SourceProblem
from e3d_deploy.data.rate import Selection, select_by_time
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import SourceLost
from e3d_deploy.progress import Notify

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 15.0
"""Delay before the first attempt to reconnect, and maximum delay (s). The delay doubles after each failed attempt."""


class Reconnecting:
    """Pictures of a camera or a network address, across reconnects.

    The constructor opens the first connection and does not retry. A connection that is lost later is reopened only for
    a live source: a file served over HTTP would start from its beginning again.

    Args:
        form: size and channels that pictures are converted to.
        selection: which pictures to read: every Nth, or resampled to a rate.
        silence_s: maximum time without a picture (s).
        attempts: maximum number of consecutive attempts to reconnect without a picture.
        remarks: collects remarks on how pictures are converted.
        notify: called with a sentence about each attempt and each reconnect.

    Raises:
        ClipError, SourceLost: the source cannot be opened.
    """

    reconnects = 0

    def __init__(
        self,
        address: Address,
        form: Form,
        selection: Selection,
        *,
        silence_s: float,
        attempts: int,
        remarks: Remarks,
        notify: Notify,
    ) -> None:
        self.address, self.form, self.selection = address, form, selection
        self.silence_s, self.attempts, self.remarks, self.notify = silence_s, attempts, remarks, notify
        self._closed, self._failures, self._section = Event(), 0, -1
        self._connection = Connection(address, silence_s)
        try:
            self._facts = self._connection.facts()
        except SourceProblem as problem:
            self._connection.close()
            raise problem.error(address.name) from None
        self.is_live, self.rate = self._facts.is_live, selection.rate(self._facts.rate)

    def pictures(self) -> Iterator[DecodedPicture]:
        """Yield the pictures until the source ends or is closed.

        Raises:
            ClipError, SourceLost: a source that is not live broke off, or all attempts to reconnect failed.
        """
        while not self._closed.is_set():
            problem = SourceProblem("the stream ended", "check the source")
            try:
                yield from self._connection_pictures()
                if not self.is_live:
                    return
            except SourceProblem as found:
                problem = found
            finally:
                self._connection.close()
            self._connect_again(problem)

    def close(self) -> None:
        """End `pictures`, even if it waits for a picture or for the next attempt to reconnect."""
        self._closed.set()
        self._connection.close()

    def _connection_pictures(self) -> Iterator[DecodedPicture]:
        """Yield the selected pictures of the current connection, in the size and channels of the model."""
        convert = FrameConverter(self.address.name, self.form, aspect=self._facts.aspect, remarks=self.remarks)
        size: tuple[int, int] | None = None
        for decoded in self._selected(self._connection.frames()):
            if size != (size := (decoded.frame.height, decoded.frame.width)):
                self._section += 1
            picture = convert(decoded.frame)
            if self._failures:
                self.notify(f"{self.address.name}: reconnected; the state is reset")
            self._failures = 0
            yield DecodedPicture(
                picture=picture, time_s=decoded.time_s, arrived_s=decoded.arrived_s, section=self._section
            )

    def _selected(self, frames: Iterator[Decoded]) -> Iterator[Decoded]:
        if self.selection.resample is not None:
            interval = Fraction(1 / self._facts.rate) if self._facts.rate else None
            return select_by_time(self._timed(frames), self.selection.resample, interval=interval)
        return islice(frames, 0, None, self.selection.every or 1)

    def _timed(self, frames: Iterator[Decoded]) -> Iterator[tuple[Fraction, Decoded]]:
        """Yield frames with times that never decrease, and increase by at most `silence_s` per frame.

        A larger jump, for example after the clock of a camera was adjusted, counts as one usual interval, so that
        resampling does not repeat one frame for the length of the jump.
        """
        usual = Fraction(1 / self._facts.rate) if self._facts.rate else Fraction(0)
        clock, last = Fraction(0), None
        for decoded in frames:
            time_s = decoded.time_s if self._facts.has_times else decoded.arrived_s
            passed = None if last is None or time_s is None else Fraction(time_s) - Fraction(last)
            clock += passed if passed is not None and 0 <= passed <= self.silence_s else usual
            last = time_s
            yield clock, decoded

    def _connect_again(self, problem: SourceProblem) -> None:
        """Try to reconnect after growing delays, until a connection is open or `close` is called.

        Args:
            problem: reason why the previous connection ended.

        Raises:
            ClipError, SourceLost: the source is not live, or all attempts failed.
        """
        name = self.address.name
        while not self._closed.is_set():
            if not self.is_live:
                raise problem.error(name)
            if self._failures >= self.attempts:
                tried = f" after {self._failures} attempts to reconnect" if self._failures else ""
                raise SourceLost(f"{name}: {problem.reason}{tried}; {problem.remedy}")
            delay_s = min(FIRST_DELAY_S * 2**self._failures, LONGEST_DELAY_S)
            self._failures += 1
            counted = f"attempt {self._failures} of {self.attempts}"
            self.notify(f"{name}: {problem.reason}; reconnecting in {delay_s:g} s ({counted})")
            if self._closed.wait(delay_s):
                return
            self._connection = Connection(self.address, self.silence_s)
            if self._closed.is_set():  # `close` may have run before the new connection was assigned
                self._connection.close()
            try:
                self._facts = self._connection.facts()
            except SourceProblem as found:
                problem = found
                self._connection.close()
            except Ended:
                return
            else:
                self.reconnects += 1
                return
