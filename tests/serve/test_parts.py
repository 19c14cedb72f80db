"""Unit tests of the protocol, the queue of messages, rate limits, checks of hosts and origins, and errors."""

import asyncio
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from starlette.datastructures import Headers

from e3d_deploy.errors import BackendUnavailable, ClipError, ConfigError, E3DError, ResourceLimit, ShapeError
from e3d_deploy.serve import security
from e3d_deploy.serve.error_responses import problem_of
from e3d_deploy.serve.outbox import Closing, Outbox
from e3d_deploy.serve.protocol import Open, Refused, SetHorizon, ViewerCommand, parse, picture_message, split_message
from e3d_deploy.serve.security import Rate, host_allowed, origin_allowed, token_matches
from e3d_deploy.serve.webcam import Webcam
from tests.serve.conftest import settings_of


def test_messages_are_read_and_unknown_fields_ignored() -> None:
    assert parse('{"type":"open","source":"webcam","horizon":3,"later":1}') == Open(
        type="open", source="webcam", horizon=3, token=None
    )
    assert parse('{"type":"horizon","value":2}') == SetHorizon(type="horizon", value=2)
    assert parse('{"type":"pause"}') == ViewerCommand(type="pause")


@settings(deadline=None, derandomize=True, database=None)
@given(
    strategies.text()
    | strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.floats() | strategies.integers() | strategies.text(),
        lambda inner: (
            strategies.lists(inner)
            | strategies.dictionaries(
                strategies.sampled_from(["type", "value", "source", "horizon", "token"]) | strategies.text(),
                inner | strategies.sampled_from(["open", "horizon", "pause"]),
            )
        ),
    ).map(json.dumps)
)
def test_any_text_is_a_message_or_refused(text: str) -> None:
    with suppress(Refused):
        assert parse(text).type in ("open", "horizon", "pause", "resume", "reset", "close")


def test_a_binary_message_holds_its_header_and_pictures() -> None:
    pictures = [np.full((2, 3, 1), value, np.uint8) for value in (1, 2)]
    header, payload = split_message(picture_message({"index": 7, "name": "ü"}, pictures))
    assert header == {"index": 7, "name": "ü"}
    assert payload == bytes([1] * 6 + [2] * 6)


def test_a_slow_viewer_loses_the_oldest_pictures_and_no_text() -> None:
    async def run() -> None:
        outbox = Outbox(asyncio.get_running_loop(), length=2)
        for message in (b"1", "a", b"2", b"3", "b", b"4"):
            outbox.put(message)
        outbox.close(1000, "end")
        outbox.put(b"5")  # ignored after `close`
        outbox.close(1001)
        found = [await outbox.take() for _ in range(6)]
        assert found == ["a", b"3", "b", b"4", "end", Closing(1000)]
        assert outbox.dropped == 2

    asyncio.run(run())


def test_messages_of_another_thread_wake_the_event_loop() -> None:
    async def run() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        waiting = asyncio.create_task(outbox.take())
        await asyncio.sleep(0)
        await asyncio.to_thread(outbox.put, b"1")
        assert await waiting == b"1"

    asyncio.run(run())


def test_a_message_after_the_event_loop_is_closed_is_ignored() -> None:
    async def make() -> Outbox:
        return Outbox(asyncio.get_running_loop())

    asyncio.run(make()).put(b"1")


def test_a_webcam_keeps_its_newest_picture_and_counts_dropped_ones() -> None:
    webcam = Webcam()
    assert webcam.take(0) is None
    found = []
    for values in (range(4), range(4, 6)):
        for value in values:
            webcam.put(np.full((1, 1, 1), value, np.uint8))
        arrival = webcam.take(0)
        assert arrival is not None
        found.append((arrival.index, int(arrival.picture[0, 0, 0]), arrival.begins_video))
    assert found == [(3, 3, True), (5, 5, False)]
    assert webcam.dropped == 4
    assert webcam.take(0) is None


def test_a_rate_allows_a_burst_and_then_its_average(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(security.time, "monotonic", lambda: now)
    rate = Rate(per_second=2, burst=3)
    assert [rate.allows() for _ in range(5)] == [True, True, True, False, False]
    now += 0.5
    assert [rate.allows() for _ in range(2)] == [True, False]
    now += 100
    assert [rate.allows() for _ in range(4)] == [True, True, True, False]


def test_tokens_must_match_completely() -> None:
    assert token_matches(None, None)
    assert token_matches("abc", "abc")
    for given_token in (None, "", "ab", "abcd", "ABC", "\ud800"):
        assert not token_matches("abc", given_token)


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8000", None, True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("cameras.example", "https://cameras.example", True),
        ("cameras.example:443", "https://cameras.example", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("127.0.0.1:8000", "https://page.example", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", False),
        ("127.0.0.1:8000", "http://localhost:8000", False),
        ("127.0.0.1:8000", "null", False),
        ("127.0.0.1:8000", "", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8000@evil.example", False),
        ("127.0.0.1:8000", "http://[::1", False),
        ("", "http://", False),
    ],
)
def test_only_the_own_origin_and_allowed_origins_are_accepted(host: str, origin: str | None, allowed: bool) -> None:
    headers = Headers({"host": host} | ({} if origin is None else {"origin": origin}))
    assert origin_allowed(headers, settings_of(origins=("https://page.example",))) is allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:1", True),
        ("page.example", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("", False),
        (":8000", False),
        ("[", False),
    ],
)
def test_a_loopback_server_accepts_only_host_names_of_this_machine(host: str, allowed: bool) -> None:
    assert host_allowed(Headers({"host": host}), settings_of(origins=("https://page.example",))) is allowed


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ClipError("a"), 422, "unreadable"),
        (ShapeError("a"), 422, "shape"),
        (ConfigError("a"), 422, "invalid"),
        (ResourceLimit("a"), 503, "full"),
        (BackendUnavailable("a"), 500, "internal"),
        (E3DError("a"), 500, "internal"),
        (RuntimeError("a"), 500, "internal"),
    ],
)
def test_errors_have_a_status_by_their_class(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    assert problem.retry is (status == 503)


def test_paths_of_the_server_are_replaced_in_messages() -> None:
    error = ClipError("/srv/x/a.mp4: damaged; see /srv/x")
    assert problem_of(error, {"/srv/x": "clip", "/srv/x/a.mp4": "walk.mp4"}).message == "walk.mp4: damaged; see clip"
