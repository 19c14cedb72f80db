"""Connection to a camera or a network address, read in a thread that may be left behind."""

from collections.abc import Iterator
from threading import Thread

from e3d_deploy.data.live.address import Address
from e3d_deploy.data.live.bounded_queue import BoundedQueue, Ended
from e3d_deploy.data.live.decoding import MOST, Decoded, Facts, decode, facts_of
from e3d_deploy.data.live.network import open_container
from e3d_deploy.data.live.source_problem import REACH, SourceProblem, problem_of


class Connection:
    """Frames of a source that was opened once.

    FFmpeg may block for longer than the time limits that it was given. So all calls of it are made in a daemon thread,
    and whoever waits for that thread gives up at a deadline. A thread that is left behind closes its connection when
    FFmpeg returns.

    Args:
        silence_s: longest time without an answer or a frame (s).
    """

    def __init__(self, address: Address, silence_s: float) -> None:
        self.address, self.silence_s = address, silence_s
        self._facts: BoundedQueue[Facts] = BoundedQueue(1, drop_oldest=False)
        self._frames: BoundedQueue[Decoded] = BoundedQueue(1, drop_oldest=False)
        self.thread = Thread(target=self._read, name=f"read {address.name}", daemon=True)
        self.thread.start()

    def facts(self) -> Facts:
        """Wait until the source is open, and return its properties.

        Raises:
            SourceProblem: it cannot be opened in time.
            Ended: the connection is closed.
        """
        facts = self._facts.take(self.silence_s)
        if facts is None:
            reason = f"gave no picture that can be decoded within {self.silence_s:g} s"
            raise SourceProblem(reason, f"{REACH}; a picture may be {MOST} at most")
        return facts

    def frames(self) -> Iterator[Decoded]:
        """Yield the frames until the source ends.

        Raises:
            SourceProblem: the source broke off, or no frame came in time.
        """
        while True:
            try:
                decoded = self._frames.take(self.silence_s)
            except Ended:
                return
            if decoded is None:
                remedy = "check the source and the network, or allow a longer silence"
                raise SourceProblem(f"no picture came for {self.silence_s:g} s", remedy)
            yield decoded

    def close(self) -> None:
        """Wake whoever waits for frames, and let the thread close the source as soon as FFmpeg returns."""
        self._facts.close()
        self._frames.close()

    def _read(self) -> None:
        import av

        error: Exception | None = None
        try:
            self._pass_on()
        except (OSError, ValueError, av.FFmpegError) as failure:
            error = problem_of(failure, self.address)
        except Exception as other:  # whoever waits has to know
            error = other
        # Facts that wait come first, so that an error after them is the one of the frames.
        self._facts.finish(error)
        self._frames.finish(error)

    def _pass_on(self) -> None:
        with open_container(self.address, self.silence_s) as container:
            stream, facts = facts_of(container, self.address)
            self._facts.put(facts)
            for decoded in decode(container, stream, facts, lambda: not self._frames.is_closed):
                self._frames.put(decoded)
