"""Fixtures for tests of live sources: peers that are closed after the test, and connections without a proxy."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.data.live.peers import Peer

Start = Callable[..., Peer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts peers, which are closed after the test."""
    peers = []

    def started(serve: Callable[..., None], **options: Any) -> Peer:
        peers.append(Peer(serve, **options))
        return peers[-1]

    yield started
    for peer in peers:
        peer.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy variables, which FFmpeg would obey, so that it reaches the peers directly."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
