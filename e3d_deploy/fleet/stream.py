"""Stream of one video, whose state is on one server of a fleet."""

import logging
import threading
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import ConfigError, ServerLost, ShapeError, StreamError
from e3d_deploy.fleet.lost import HostLost, SequenceLost
from e3d_deploy.runtime.arguments import check_count
from e3d_deploy.runtime.pictures import as_plain
from e3d_deploy.triton import contract

if TYPE_CHECKING:
    from e3d_deploy.fleet.connection import Connection
    from e3d_deploy.fleet.fleet import Fleet

log = logging.getLogger(__name__)


class Stream:
    """Stream of one video, opened by `Fleet.stream`; it keeps the last pictures, and a server keeps the state.

    If the server is lost, is too slow, or has dropped the state, the stream restarts: it starts on the next host of its
    ranking from its last `context` pictures. A restarted stream forecasts as a new stream that saw these pictures. Each
    restart is logged, and counted in `restarts`.

    Only one thread may use a stream at a time; another thread may close it. After an error, and after Ctrl-C, the
    picture of the call does not count as seen, and the next call restarts the stream.
    """

    def __init__(self, fleet: "Fleet", name: str) -> None:
        self.name = name
        """Id of the stream, which decides its host."""
        self.pushed = 0
        """Number of pictures that the stream has seen."""
        self.restarts = 0
        """Number of times that the stream was started again from its last pictures."""
        self._fleet, self._lock, self._closed = fleet, threading.Lock(), False
        self._pictures: tuple[NDArray[np.uint8], ...] = ()
        self._connection: Connection | None = None
        # True while the server has seen exactly the pictures of this stream since its last start, and owes no answer.
        self._in_step = False
        self._reconsiders = False

    @property
    def host(self) -> str | None:
        """Host that has the state of the stream; None before the first picture, and after an error."""
        connection = self._connection
        return connection.host if connection is not None and self._in_step else None

    @overload
    def push(self, picture: Any, horizon: None = None) -> NDArray[np.float32]: ...

    @overload
    def push(self, picture: Any, horizon: int) -> NDArray[np.uint8]: ...

    def push(self, picture: Any, horizon: int | None = None) -> NDArray[Any]:
        """Advance the stream by the next picture, and return what the server forecasts after it.

        A host that does not answer in time costs `timeout_s` of the fleet before the next host is tried.

        Args:
            picture: uint8 [H, W, C]; a NumPy array, or an array of another library on the host.
            horizon: number of pictures to forecast; None returns only the prediction of the next frame.

        Returns:
            Without a horizon, the prediction of the next frame, float32 [C, H, W], not clipped. With one, the next
            pictures, uint8 [horizon, H, W, C].

        Raises:
            ConfigError: `horizon` is below 1 or above 1000.
            ShapeError: the picture has an unexpected size or type.
            ServerLost: no server answers; the message names each host and its reason.
            BundleError: the next host serves another bundle, or a model of another version.
            StreamError: the server refuses the picture; the stream or the fleet was closed; another thread is using
                the stream; or this process was forked from the one that opened the fleet.
        """
        self._check_open()
        if horizon is not None and (horizon := check_count("horizon", horizon)) > contract.MAX_HORIZON:
            raise ConfigError(f"horizon: got {horizon}, expected 1 to {contract.MAX_HORIZON}; ask for fewer pictures")
        seen = self._check_picture(picture)
        if not self._lock.acquire(blocking=False):
            self._check_open()  # `close` keeps the lock
            raise StreamError(f"stream {self.name!r}: another thread is using it; open one stream per thread")
        try:
            pictures = (*self._pictures, seen)[-self._fleet.context :]
            answer = self._advance(pictures, horizon)
            self._pictures, self.pushed = pictures, self.pushed + 1
            return answer
        finally:
            self._lock.release()

    def _check_picture(self, picture: Any) -> NDArray[np.uint8]:
        """Return a copy of a picture, because the caller may overwrite the original."""
        array = as_plain(picture, shape=self._fleet.served.picture)
        if array.dtype != np.uint8:
            raise ShapeError(
                f"picture: got {array.dtype}, expected uint8, the only type that the servers take; convert it, for "
                "floats in [0, 1] with (picture * 255).round().astype(np.uint8)"
            )
        return np.array(array, order="C")

    def _check_open(self) -> None:
        self._fleet.check_open()
        if self._closed:
            raise StreamError(f"stream {self.name!r}: it was closed; open it again with fleet.stream")

    def _advance(self, pictures: tuple[NDArray[np.uint8], ...], horizon: int | None) -> NDArray[Any]:
        """Send the last picture to the server that has the state, or all pictures to another one."""
        connection, reason = self._connection, "the previous call failed"
        if connection is not None and self._in_step and self._leaves(connection):
            self._end(connection, pictures[-1])
            reason = "the list of hosts was set"
        elif connection is not None and self._in_step:
            try:
                return self._send(connection, pictures[-1:], horizon)
            except (HostLost, SequenceLost) as error:
                self._check_open()  # `close` in another thread ends the connection
                reason = f"{connection.host}: {error}"
                if isinstance(error, HostLost):
                    self._fleet.avoid(connection.host, str(error))
        return self._start(pictures, horizon, reason)

    def reconsider(self) -> None:
        """Move to the first host with the next picture, if the stream is on another one."""
        self._reconsiders = True

    def _leaves(self, connection: "Connection") -> bool:
        """Return True if `reconsider` was called and the stream is not on its first host."""
        reconsiders, self._reconsiders = self._reconsiders, False
        return reconsiders and connection.host != self._fleet.candidates(self.name)[0]

    def _start(self, pictures: tuple[NDArray[np.uint8], ...], horizon: int | None, reason: str) -> NDArray[Any]:
        """Start a sequence with pictures on the first host that answers; `reason` is logged if it is a restart."""
        reasons = {}
        for host in self._fleet.candidates(self.name):
            try:
                connection = self._connection = self._fleet.connect(host)
                answer = self._send(connection, pictures, horizon)
            except (HostLost, SequenceLost) as error:
                self._check_open()
                self._fleet.avoid(host, str(error))
                reasons[host] = str(error)
                continue
            if self.pushed:
                self.restarts += 1
                log.warning(
                    "stream %s: restarted on %s from its last %d pictures (%s)", self.name, host, len(pictures), reason
                )
            return answer
        raise no_server(self._fleet.model, reasons)

    def _send(
        self, connection: "Connection", pictures: tuple[NDArray[np.uint8], ...], horizon: int | None
    ) -> NDArray[Any]:
        """Send pictures, and return the answer to the last one; after any error, leave the sequence."""
        self._in_step = False
        try:
            self._check_open()  # `close` in another thread did not see a connection that was opened since
            for picture in pictures[:-1]:
                connection.infer(picture, None)
            answer = connection.infer(pictures[-1], horizon)
        except StreamError:
            self._end(connection, pictures[-1])
            raise
        except BaseException:
            connection.close()
            raise
        self._in_step = True
        return answer

    def close(self) -> None:
        """End the sequence, so that the server frees its state; a call in progress in another thread fails.

        A second call does nothing, and neither does a call in a forked process.
        """
        if self._closed or self._fleet.is_forked:
            return
        self._closed = True
        self._fleet.forget(self)
        connection = self._connection
        if connection is None:
            return
        if self._in_step and self._lock.acquire(blocking=False):
            self._end(connection, self._pictures[-1])
        connection.close()

    def _end(self, connection: "Connection", picture: NDArray[np.uint8]) -> None:
        """End the sequence of a connection, unless its host was lost lately, and close the connection."""
        try:
            if not self._fleet.is_avoided(connection.host):
                connection.end(picture)
        except HostLost as error:
            self._fleet.avoid(connection.host, str(error))
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def no_server(model: str, reasons: dict[str, str]) -> ServerLost:
    """Return the error for a model that no host serves; `reasons` has the reason of each host."""
    each = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
    return ServerLost(f"model {model!r}: no server answers ({each}); start the servers, or correct the list of hosts")
