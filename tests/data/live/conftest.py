"""Fixtures for tests of live sources: peers that are closed, and no proxy between."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.data.live.peers import Peer

Start = Callable[..., Peer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a peer, which is closed after the test."""
    peers = []

    def started(serve: Callable[..., None], **options: Any) -> Peer:
        peers.append(Peer(serve, **options))
        return peers[-1]

    yield started
    for peer in peers:
        peer.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach the peers directly, though FFmpeg would obey these variables."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
