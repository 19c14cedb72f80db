"""Choice of a host for each stream: rendezvous hashing, also called highest random weight."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from e3d_deploy.errors import ConfigError

ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+):(\d{1,5})")
"""Host name, IPv4 address or IPv6 address in brackets, and a port."""
MAX_PORT = 65_535


def ranking(stream: str, hosts: Iterable[str]) -> list[str]:
    """Return hosts in the order in which a stream tries them.

    The order depends only on the set of hosts and the id of the stream, so all clients agree on it. Removing a host
    moves only the streams of that host; adding one moves only the streams that now rank it first.
    """
    return sorted(hosts, key=lambda host: (weight(stream, host), host), reverse=True)


def weight(stream: str, host: str) -> int:
    """Return the weight of a host for a stream, uniform in [0, 2**64).

    Clients of all versions and languages have to agree: the weight is the first 8 bytes, big-endian, of the SHA-256 of
    host, a zero byte, and the id of the stream, in UTF-8.
    """
    digest = hashlib.sha256(f"{host}\0{stream}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def check_hosts(hosts: Any) -> tuple[str, ...]:
    """Return host addresses in lower case.

    Raises:
        ConfigError: `hosts` is empty or not a list of texts, an address has no valid port, or a host is listed twice.
    """
    example = "expected a list such as ['10.0.0.1:8001', '10.0.0.2:8001']"
    if isinstance(hosts, str | bytes) or not isinstance(hosts, Iterable):
        raise ConfigError(f"hosts: got {hosts!r}, {example}")
    checked = tuple(_check_host(host) for host in hosts)
    if not checked:
        raise ConfigError(f"hosts: got an empty list, {example}; give at least one Triton server")
    if repeated := sorted({host for host in checked if checked.count(host) > 1}):
        raise ConfigError(f"hosts: {', '.join(repeated)} is listed more than once; list each server once")
    return checked


def _check_host(host: Any) -> str:
    found = ADDRESS.fullmatch(host.lower()) if isinstance(host, str) else None
    if found is None or not 0 < int(found[2]) <= MAX_PORT:
        raise ConfigError(
            f"hosts: got {host!r}, expected HOST:PORT such as '10.0.0.1:8001', with the gRPC port, by default 8001"
        )
    return found[0]
