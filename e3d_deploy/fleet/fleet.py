"""Fleet of Triton servers that serve one bundle."""

import logging
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Self

from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError, StreamError
from e3d_deploy.fleet.checks import check_hosts, check_same, check_timeout
from e3d_deploy.fleet.hashing import ranking
from e3d_deploy.fleet.lost import HostLost
from e3d_deploy.fleet.stream import Stream, no_server
from e3d_deploy.libraries import pip_install
from e3d_deploy.runtime.arguments import check_count

if TYPE_CHECKING:
    from e3d_deploy.fleet.connection import Connection
    from e3d_deploy.fleet.messages import ServedModel

log = logging.getLogger(__name__)

AVOID_S = 30.0
"""Time for which a lost host is tried only after all others (s)."""


class Fleet:
    """Triton servers that serve one bundle, and the streams of this client on them.

    The host of a stream follows from the id of the stream and the list of hosts (rendezvous hashing), so every client
    computes the same one. A lost host is tried last for `AVOID_S` seconds. A stream stays on the host that it moved to,
    also when its first host answers again, until that host is lost, the stream is closed, or `set_hosts` is called.

    Threads may share a fleet if each uses its own streams. A fleet does not work in a forked process.

    Args:
        hosts: gRPC address of each server, `HOST:PORT`. The text decides the host of a stream, so give all clients the
            same spelling.
        model: name of the model, as `e3d pack --triton` wrote it.
        timeout_s: time limit of one request (s); a host that exceeds it counts as lost.
        context: number of last pictures with which a stream restarts; None takes the context of the model.

    Raises:
        ConfigError: an argument is invalid.
        BackendUnavailable: tritonclient is not installed.
        ServerLost: no server answers.
        BundleError: a model was not written by `e3d pack --triton` of this version, or the servers serve different
            bundles.
    """

    def __init__(
        self, hosts: Iterable[str], model: str, *, timeout_s: float = 10.0, context: int | None = None
    ) -> None:
        self.hosts = check_hosts(hosts)
        """Addresses of the servers, in lower case."""
        if not isinstance(model, str) or not model:
            raise ConfigError(f"model: got {model!r}, expected the name of a model on the servers")
        self.model, self._timeout_s = model, check_timeout(timeout_s)
        self._library = _import_library()
        self._pid, self._closed, self._lock = os.getpid(), False, threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._avoided_until: dict[str, float] = {}
        self.served = self._describe(self.hosts)
        """Model that all servers serve."""
        self.context = check_count("context", self.served.context if context is None else context)
        """Number of last pictures that each stream keeps for a restart."""

    def _describe(self, hosts: tuple[str, ...]) -> "ServedModel":
        """Ask all hosts at once, and return the model that they serve; hosts that do not answer are avoided."""
        served: dict[str, ServedModel] = {}
        reasons: dict[str, str] = {}
        with ThreadPoolExecutor(len(hosts)) as pool:
            asked = [pool.submit(self._library.Connection.open, host, self.model, self._timeout_s) for host in hosts]
        for host, answer in zip(hosts, asked, strict=True):
            try:
                connection = answer.result()
            except HostLost as error:
                reasons[host] = str(error)
            else:
                served[host] = connection.served
                connection.close()
                self._avoided_until.pop(host, None)
        if not served:
            raise no_server(self.model, reasons)
        for host, reason in reasons.items():
            self.avoid(host, reason)
        first, *others = served
        for host in others:
            check_same(host, served[host], first, served[first])
        return served[first]

    def set_hosts(self, hosts: Iterable[str]) -> None:
        """Change the list of hosts, and move the streams that are not on their first host.

        Without lost hosts these are the streams whose host was removed, and those that rank an added host first. The
        same list again brings streams back to a host that was lost and answers now. A stream moves, and restarts, with
        its next picture.

        Raises:
            ConfigError: `hosts` is not a list of different addresses.
            ServerLost, BundleError: no host answers, or one serves another bundle; the list stays unchanged.
            StreamError: the fleet was closed, or this process was forked.
        """
        self.check_open()
        hosts = check_hosts(hosts)
        check_same("hosts", self._describe(hosts), "the fleet", self.served)
        with self._lock:
            self.hosts = hosts
            streams = list(self._streams.values())
        for stream in streams:
            stream.reconsider()

    def stream(self, name: str) -> Stream:
        """Open a stream for a new video; it contacts a server with its first picture.

        Args:
            name: id of the stream, such as the name of the camera; it decides the host.

        Raises:
            ConfigError: `name` is not a text, or is empty.
            StreamError: a stream of this id is open, the fleet was closed, or this process was forked.
        """
        self.check_open()
        if not isinstance(name, str) or not name:
            raise ConfigError(f"stream: got {name!r}, expected its id as text, such as 'camera-7'")
        stream = Stream(self, name)
        with self._lock:
            if self._streams.setdefault(name, stream) is not stream:
                raise StreamError(f"stream {name!r}: is open already; close it first, or use another id")
        return stream

    def candidates(self, name: str) -> list[str]:
        """Return all hosts in the order in which a stream tries them; hosts that were lost lately are last."""
        return sorted(ranking(name, self.hosts), key=self.is_avoided)

    def is_avoided(self, host: str) -> bool:
        """Return True if a host was lost in the last `AVOID_S` seconds."""
        return time.monotonic() < self._avoided_until.get(host, 0.0)

    def avoid(self, host: str, reason: str) -> None:
        """Try a host only after all others, for `AVOID_S` seconds."""
        if not self.is_avoided(host):
            log.warning("%s: lost (%s); other hosts are preferred for %g s", host, reason, AVOID_S)
        self._avoided_until[host] = time.monotonic() + AVOID_S

    def connect(self, host: str) -> "Connection":
        """Connect to a host that serves the bundle of this fleet.

        Raises:
            HostLost: the server does not answer, or does not have the model.
            BundleError: the host serves another bundle than this fleet, or a model of another version.
        """
        connection: Connection = self._library.Connection.open(host, self.model, self._timeout_s)
        try:
            check_same(host, connection.served, "the fleet", self.served)
        except BundleError:
            connection.close()
            raise
        return connection

    def forget(self, stream: Stream) -> None:
        """Allow the id of a stream to be opened again."""
        with self._lock:
            self._streams.pop(stream.name, None)

    @property
    def is_forked(self) -> bool:
        """True in a process that was forked from the one that opened the fleet."""
        return os.getpid() != self._pid

    def check_open(self) -> None:
        """Check that the fleet can be used.

        Raises:
            StreamError: the fleet was closed, or this process was forked from the one that opened it.
        """
        if self.is_forked:
            raise StreamError("this process was forked from the one that opened the fleet; open a fleet here")
        if self._closed:
            raise StreamError("fleet: it was closed; open it again")

    def close(self) -> None:
        """Close all streams; calls in progress in other threads fail. A second call does nothing."""
        self._closed = True
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _import_library() -> ModuleType:
    """Import the module that needs tritonclient; late, because `import e3d_deploy.fleet` must work without it.

    Raises:
        BackendUnavailable: tritonclient, or a library that it needs, is not installed.
    """
    try:
        from e3d_deploy.fleet import connection
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"fleet: {error.name} is not installed; {pip_install('triton')}") from error
    return connection
