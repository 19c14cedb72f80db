"""Fake servers for the client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from e3d_deploy.fleet import Fleet
from tests.fleet.fake_server import FakeServer, running


@dataclass
class Servers:
    """Two fake servers."""

    all: list[FakeServer]
    stop: dict[str, Callable[[], None]]
    """Functions that end the server at an address at once."""

    def fleet(self, *, timeout_s: float = 5.0, context: int | None = None) -> Fleet:
        return Fleet([one.address for one in self.all], "kth", timeout_s=timeout_s, context=context)

    def at(self, host: str | None) -> FakeServer:
        return next(one for one in self.all if one.address == host)

    def other(self, host: str | None) -> FakeServer:
        return next(one for one in self.all if one.address != host)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        every = [FakeServer(), FakeServer()]
        yield Servers(every, {one.address: stop for one in every for stop in [stack.enter_context(running(one))]})
