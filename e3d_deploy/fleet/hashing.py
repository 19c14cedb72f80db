"""Choice of a host for each stream: rendezvous hashing, also called highest random weight."""

import hashlib
from collections.abc import Iterable


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
