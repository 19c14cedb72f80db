"""Connection to a camera or a network address, read in a thread that is abandoned if FFmpeg blocks."""

from collections.abc import Iterator
from threading import Thread

from e3d_deploy.data.live.address import Address
from e3d_deploy.data.live.bounded_queue import BoundedQueue, Ended
from e3d_deploy.data.live.decoding import MAX_SIZE, Decoded, Facts, decode, facts_of
from e3d_deploy.data.live.network import open_container
from e3d_deploy.data.live.source_problem import REACH, SourceProblem, problem_of


class Connection:
    """One connection to a camera or a network address, opened and read in a daemon thread.

    FFmpeg may block for longer than its time limits. Therefore only the daemon thread calls FFmpeg, and `facts` and
    `frames` wait for the daemon thread only until a deadline. After the deadline, the daemon thread is abandoned; it
    closes the connection when FFmpeg returns.

    Args:
        silence_s: maximum time to wait for the source to open, and for each frame (s).
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
            SourceProblem: the source cannot be opened, or does not open within `silence_s`.
            Ended: the connection is closed.
        """
        facts = self._facts.take(self.silence_s)
        if facts is None:
            reason = f"sent no picture that can be decoded within {self.silence_s:g} s"
            raise SourceProblem(reason, f"{REACH}; pictures may have at most {MAX_SIZE} pixels")
        return facts

    def frames(self) -> Iterator[Decoded]:
        """Yield the frames until the source ends.

        Raises:
            SourceProblem: the source broke off, or no frame arrived within `silence_s`.
        """
        while True:
            try:
                decoded = self._frames.take(self.silence_s)
            except Ended:
                return
            if decoded is None:
                remedy = "check the source and the network, or allow a longer silence"
                raise SourceProblem(f"no picture arrived for {self.silence_s:g} s", remedy)
            yield decoded

    def close(self) -> None:
        """Wake the threads that wait for this connection. The daemon thread closes the source when FFmpeg returns."""
        self._facts.close()
        self._frames.close()

    def _read(self) -> None:
        import av

        error: Exception | None = None
        try:
            self._pass_on()
        except (OSError, ValueError, av.FFmpegError) as failure:
            error = problem_of(failure, self.address)
        except Exception as other:  # passed on, so that the waiting thread need not wait until its deadline
            error = other
        # If the facts are already queued, `facts` returns the facts, and `frames` raises the error.
        self._facts.finish(error)
        self._frames.finish(error)

    def _pass_on(self) -> None:
        with open_container(self.address, self.silence_s) as container:
            stream, facts = facts_of(container, self.address)
            self._facts.put(facts)
            for decoded in decode(container, stream, facts, lambda: not self._frames.is_closed):
                self._frames.put(decoded)
