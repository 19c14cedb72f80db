"""A lost camera is reconnected after growing delays, until too many attempts fail."""

import socket
from collections.abc import Iterator

import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live import reconnect
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Arrival, Ended, Feed, FeedOptions
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import SourceLost
from tests.data.live.conftest import Start
from tests.data.live.peers import SIZE, Peer, mjpeg, number_of, picture, request, respond, rtsp, wait_until

FORM = Form(image_size=(24, 32), channels=1)
EIGHT = [picture(number) for number in range(8)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 0.01)


def feed(peer: Peer, told: list[str], scheme: str = "http", **options: object) -> Feed:
    return Feed(
        parse_address(f"{scheme}://user:hunter2@127.0.0.1:{peer.port}/cam"),
        FORM,
        FeedOptions(**{"policy": "block", "silence_s": 600.0, "attempts": 3, **options}),  # type: ignore[arg-type]
        remarks=Remarks(silent=True),
        notify=told.append,
    )


def first(source: Feed, count: int) -> list[Arrival]:
    pictures: Iterator[Arrival] = iter(source)
    return [next(pictures) for _ in range(count)]


@pytest.mark.parametrize(
    ("scheme", "serve"), [("http", mjpeg(EIGHT)), ("rtsp", rtsp(8, pause_s=0))], ids=["mjpeg", "rtsp"]
)
def test_a_live_source_that_ends_is_reconnected(scheme: str, serve: object, start: Start) -> None:
    told: list[str] = []
    with feed(start(serve), told, scheme) as source:
        arrivals = first(source, 20)
        assert source.reconnects == 2
    assert [number_of(arrival.picture) for arrival in arrivals] == [number % 8 for number in range(20)]
    assert [arrival.index for arrival in arrivals] == list(range(20))
    assert [arrival.begins_video for arrival in arrivals] == [number % 8 == 0 for number in range(20)]
    assert len(told) >= 2
    lost, found = told[::2], told[1::2]
    assert all("reconnecting in 0.01 s (attempt 1 of 3)" in text for text in lost)
    assert all(text.endswith(": reconnected; the state is reset") for text in found)
    assert "hunter2" not in str(told)


def test_a_live_source_that_falls_silent_is_reconnected(start: Start) -> None:
    told: list[str] = []
    peer = start(mjpeg(EIGHT, then_silent=True))
    with feed(peer, told, silence_s=1) as source:
        first(source, 20)
    assert "no picture arrived for 1 s; reconnecting" in told[0]


def test_a_source_is_lost_after_all_attempts_failed(start: Start) -> None:
    told: list[str] = []

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        if number == 0:
            mjpeg(EIGHT)(peer, connection, number)
        else:
            request(connection)
            respond(connection, "404 Not Found", {"Content-Length": "0"})

    peer = start(serve)
    with feed(peer, told) as source:
        assert len(first(source, 8)) == 8
        with pytest.raises(SourceLost, match=r"got 404.* after 3 attempts to reconnect; check the path") as lost:
            source.take()
        assert lost.value.exit_code == 6
        with pytest.raises(SourceLost):  # a second call also raises, instead of waiting without end
            source.take()
    assert [text.rpartition("in ")[2] for text in told] == [
        "0.01 s (attempt 1 of 3)",
        "0.02 s (attempt 2 of 3)",
        "0.04 s (attempt 3 of 3)",
    ]
    assert (peer.connections, source.reconnects) == (4, 0)


def test_a_server_that_was_down_is_reconnected(start: Start) -> None:
    told: list[str] = []
    peer = start(mjpeg(EIGHT))
    with feed(peer, told, attempts=12) as source:
        first(source, 4)
        peer.close()
        taken: list[Arrival | None] = []

        def take() -> Arrival | None:
            taken.append(source.take(0.01))
            return taken[-1]

        wait_until(lambda: take() is None and len(told) >= 2)  # the second notice follows a refused connection
        start(mjpeg(EIGHT), port=peer.port)
        wait_until(lambda: (arrival := take()) is not None and arrival.begins_video)
        assert taken[-1] is not None
        assert number_of(taken[-1].picture) == 0
    assert any("refused the connection" in text for text in told)


def test_zero_attempts_never_reconnect(start: Start) -> None:
    told: list[str] = []
    with feed(start(mjpeg(EIGHT)), told, attempts=0) as source:
        first(source, 8)
        with pytest.raises(SourceLost, match="http://127"):
            source.take()
    assert not told


def test_a_change_of_size_begins_a_new_section(start: Start) -> None:
    sizes = [SIZE, SIZE, (96, 80), (96, 80), SIZE, SIZE]
    pictures = [picture(number, size) for number, size in enumerate(sizes)] + [picture(6)] * 8
    told: list[str] = []
    with feed(start(mjpeg(pictures, then_silent=True)), told) as source:
        arrivals = first(source, 6)
    assert [arrival.begins_video for arrival in arrivals] == [True, False, True, False, True, False]
    assert {arrival.picture.shape for arrival in arrivals} == {FORM.shape}
    assert [number_of(arrival.picture) for arrival in arrivals] == list(range(6))


def test_the_first_picture_that_is_not_dropped_begins_the_connection(start: Start) -> None:
    """If the first picture of a connection is dropped, the next picture is marked as the beginning."""
    told: list[str] = []
    with feed(start(mjpeg(EIGHT)), told, policy="drop-oldest", queue_length=1) as source:
        begun = {}
        while len(begun) < 3:
            arrival = source.take()
            assert arrival is not None
            connection = arrival.index // 8
            assert arrival.begins_video == (connection not in begun)
            begun[connection] = arrival


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(Selection(every=3), [0, 3, 6, 0, 3, 6]), (Selection(resample=12.5), [0, 2, 4, 6, 0, 2, 4, 6])],
)
def test_the_selection_of_pictures_restarts_after_a_reconnect(
    selection: Selection, expected: list[int], start: Start
) -> None:
    peer = start(rtsp(8, pause_s=0))
    with Feed(
        parse_address(f"rtsp://127.0.0.1:{peer.port}/cam"),
        FORM,
        FeedOptions(policy="block", silence_s=600),
        selection=selection,
        remarks=Remarks(silent=True),
    ) as source:
        arrivals = first(source, len(expected))
    assert [number_of(arrival.picture) for arrival in arrivals] == expected
    assert [arrival.index for arrival in arrivals] == list(range(len(expected)))


def test_closing_ends_the_wait_for_the_next_attempt(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 600)
    told: list[str] = []
    source = feed(start(mjpeg(EIGHT)), told)
    first(source, 8)
    wait_until(lambda: source.take(0.01) is None and bool(told))
    source.close()
    with pytest.raises(Ended):
        source.take()
    source._thread.join(60)
    assert not source._thread.is_alive()
