"""A feed yields the pictures of any source in order, through a bounded queue."""

import base64
import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live import feed as module
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Arrival, Ended, Feed, FeedOptions
from e3d_deploy.data.live.schedule import Schedule
from e3d_deploy.data.play import play
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ClipError, ConfigError, SourceLost
from tests.data.live.conftest import Start
from tests.data.live.peers import (
    RATE,
    Peer,
    answering,
    mjpeg,
    mp4,
    number_of,
    picture,
    request,
    respond,
    rtsp,
    wait_until,
)
from tests.data.test_data import gray_levels, write_video

FORM = Form(image_size=(24, 32), channels=1)
PATIENT = FeedOptions(silence_s=600, attempts=1, policy="block")


def feed(text: str, options: FeedOptions = PATIENT, **more: Any) -> Feed:
    return Feed(parse_address(text), FORM, options, remarks=Remarks(silent=True), **more)


def numbers(arrivals: Sequence[Arrival]) -> list[int]:
    return [number_of(arrival.picture) for arrival in arrivals]


def test_a_file_yields_the_same_pictures_as_play_with_their_times(tmp_path: Path) -> None:
    mp4(tmp_path / "a.mp4", 12)
    with feed(str(tmp_path / "a.mp4")) as source:
        arrivals = list(source)
        with pytest.raises(Ended):
            source.take()
    played = list(play(tmp_path / "a.mp4", FORM).pictures)
    np.testing.assert_array_equal([arrival.picture for arrival in arrivals], played)
    assert [arrival.index for arrival in arrivals] == list(range(12))
    assert [arrival.time_s for arrival in arrivals] == pytest.approx([number / RATE for number in range(12)])
    assert [arrival.begins_video for arrival in arrivals] == [True] + 11 * [False]
    assert (source.is_live, source.frames_per_second, source.dropped, source.reconnects) == (False, RATE, 0, 0)


@pytest.mark.parametrize(
    ("selection", "expected", "rate"),
    [(Selection(every=3), [0, 3, 6, 9], RATE / 3), (Selection(resample=RATE / 2), [0, 2, 4, 6, 8, 10], RATE / 2)],
)
@pytest.mark.parametrize("remote", [False, True])
def test_pictures_of_a_file_are_selected(
    selection: Selection, expected: list[int], rate: float, remote: bool, tmp_path: Path, start: Start
) -> None:
    content = mp4(tmp_path / "a.mp4", 12)
    text = f"http://127.0.0.1:{start(answering('200 OK', body=content)).port}/" if remote else str(tmp_path / "a.mp4")
    with feed(text, selection=selection) as source:
        arrivals = list(source)
    assert numbers(arrivals) == expected
    assert [arrival.time_s for arrival in arrivals] == pytest.approx([number / RATE for number in expected])
    assert source.frames_per_second == pytest.approx(rate)


def test_a_file_over_http_ends_as_a_file_does(tmp_path: Path, start: Start) -> None:
    peer = start(answering("200 OK", body=mp4(tmp_path / "a.mp4", 12)))
    with feed(f"http://127.0.0.1:{peer.port}/a.mp4") as source:
        arrivals = list(source)
    assert numbers(arrivals) == list(range(12))
    assert [arrival.time_s for arrival in arrivals] == pytest.approx([number / RATE for number in range(12)])
    assert not source.is_live


def test_a_file_over_http_without_a_content_length_is_complete(tmp_path: Path, start: Start) -> None:
    content = mp4(tmp_path / "a.mp4", 12)

    def serve(_: Peer, connection: socket.socket, __: int) -> None:
        request(connection)
        respond(connection, "200 OK", {}, content)

    with feed(f"http://127.0.0.1:{start(serve).port}/") as source:
        assert numbers(list(source)) == list(range(12))
    assert not source.is_live


def test_mjpeg_over_http_is_live_and_has_no_times(start: Start) -> None:
    peer = start(mjpeg([picture(number) for number in range(12)], then_silent=True))
    with feed(f"http://127.0.0.1:{peer.port}/") as source:
        arrivals = [source.take() for _ in range(12)]
    assert [arrival and number_of(arrival.picture) for arrival in arrivals] == list(range(12))
    assert {arrival and arrival.time_s for arrival in arrivals} == {None}
    assert (source.is_live, source.frames_per_second) == (True, None)


def test_mjpeg_of_cameras_that_begin_with_a_blank_line_is_read(start: Start) -> None:
    """ESP32 cameras send such a line, for which FFmpeg selects another demuxer."""
    peer = start(mjpeg([picture(number) for number in range(200)], then_silent=True, before=b"\r\n"))
    with feed(f"http://127.0.0.1:{peer.port}/") as source:
        arrivals = [arrival for _, arrival in zip(range(12), source, strict=False)]
    assert numbers(arrivals) == list(range(12))
    assert (source.is_live, source.frames_per_second) == (True, None)


def test_a_live_source_keeps_only_the_newest_picture_by_default(start: Start) -> None:
    peer = start(mjpeg([picture(number) for number in range(20)], then_silent=True))
    with feed(f"http://127.0.0.1:{peer.port}/", FeedOptions(silence_s=600)) as source:
        wait_until(lambda: source.dropped == 19)
        arrival = source.take()
    assert arrival is not None
    assert (number_of(arrival.picture), arrival.index, arrival.begins_video) == (19, 19, True)


def test_user_and_password_are_sent_to_a_server_that_requires_them(start: Start, tmp_path: Path) -> None:
    content = mp4(tmp_path / "a.mp4", 3)

    def serve(_: Peer, connection: socket.socket, __: int) -> None:
        _, headers = request(connection)
        if headers.get("authorization") == f"Basic {base64.b64encode(b'user:p@ss/word').decode()}":
            respond(connection, "200 OK", {"Content-Length": str(len(content))}, content)
        else:
            respond(connection, "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="x"', "Content-Length": "0"})

    with feed(f"http://user:p%40ss%2Fword@127.0.0.1:{start(serve).port}/") as source:
        assert len(list(source)) == 3


@pytest.mark.parametrize("text", ["rtsp://127.0.0.1:1/", "/dev/video0", "-"])
def test_without_pyav_the_extra_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailable, match="video"):
        Feed(parse_address(text, raw=(2, 2, 1)), FORM, PATIENT, stdin=io.BytesIO())


def test_raw_pictures_of_the_form_of_the_model_need_no_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with Feed(parse_address("-", raw=FORM.shape), FORM, PATIENT, stdin=io.BytesIO(bytes(24 * 32))) as source:
        assert len(list(source)) == 1


def test_rtsp_yields_every_picture_that_the_camera_sends(start: Start) -> None:
    with feed(f"rtsp://127.0.0.1:{start(rtsp(None)).port}/cam") as source:
        arrivals = [arrival for _, arrival in zip(range(30), source, strict=False)]
    assert numbers(arrivals) == [number % 20 for number in range(30)]
    assert (source.is_live, source.frames_per_second) == (True, RATE)
    times = [arrival.time_s for arrival in arrivals]
    assert np.diff(np.asarray(times[2:], float)) == pytest.approx(1 / RATE)


@pytest.mark.parametrize("raw", [(24, 32, 1), (24, 32, 3), (48, 64, 1), (48, 64, 3)])
def test_raw_pictures_are_converted_to_the_form_of_the_model(raw: tuple[int, int, int]) -> None:
    frames = [np.full(raw, 20 + 10 * number, np.uint8) for number in range(5)]
    stdin = io.BytesIO(b"".join(frame.tobytes() for frame in frames))
    with Feed(parse_address("-", raw=raw), FORM, PATIENT, stdin=stdin) as source:
        arrivals = list(source)
    assert numbers(arrivals) == list(range(5))
    assert {arrival.picture.shape for arrival in arrivals} == {FORM.shape}
    assert (source.is_live, source.frames_per_second) == (False, None)


def test_an_incomplete_raw_picture_ends_the_feed_with_its_byte_counts() -> None:
    stdin = io.BytesIO(bytes(2 * 24 * 32 + 100))
    with Feed(parse_address("-", raw=(24, 32, 1)), FORM, PATIENT, stdin=stdin) as source:
        assert len([source.take(), source.take()]) == 2
        with pytest.raises(SourceLost, match="in picture 2, got 100 bytes, expected 768"):
            source.take()


def test_an_empty_stdin_is_an_error() -> None:
    with (
        Feed(parse_address("-", raw=(24, 32, 1)), FORM, PATIENT, stdin=io.BytesIO()) as source,
        pytest.raises(ClipError, match="stdin: empty"),
    ):
        source.take()


def test_raw_pictures_are_not_resampled_as_they_have_no_rate() -> None:
    with pytest.raises(ConfigError, match="has no known frame rate"):
        Feed(parse_address("-", raw=(24, 32, 1)), FORM, PATIENT, selection=Selection(resample=5), stdin=io.BytesIO())


def test_a_full_queue_drops_the_oldest_pictures_and_counts_them() -> None:
    stdin = io.BytesIO(b"".join(np.full(FORM.shape, 20 + 10 * number, np.uint8).tobytes() for number in range(12)))
    options = FeedOptions(policy="drop-oldest", queue_length=3)
    with Feed(parse_address("-", raw=FORM.shape), FORM, options, stdin=stdin) as source:
        wait_until(lambda: not source._thread.is_alive())
        arrivals = list(source)
    assert (numbers(arrivals), source.dropped) == ([9, 10, 11], 9)
    assert [arrival.index for arrival in arrivals] == [9, 10, 11]
    assert [arrival.begins_video for arrival in arrivals] == [True, False, False]


def test_a_full_queue_blocks_the_reader_and_drops_none() -> None:
    stdin = io.BytesIO(bytes(12 * 24 * 32))
    with Feed(parse_address("-", raw=FORM.shape), FORM, FeedOptions(queue_length=3), stdin=stdin) as source:
        wait_until(lambda: len(source._waiting._items) == 3)
        assert stdin.tell() <= 4 * 24 * 32
        assert (len(list(source)), source.dropped) == (12, 0)


def test_a_timeout_returns_none_and_the_feed_continues(start: Start) -> None:
    gate = threading.Event()

    class Pipe(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            gate.wait()
            return super().readinto(buffer)

    stdin = Pipe(bytes(24 * 32))
    with Feed(parse_address("-", raw=FORM.shape), FORM, PATIENT, stdin=stdin) as source:
        assert source.take(0.01) is None
        gate.set()
        assert source.take() is not None


def test_a_recording_in_real_time_yields_each_picture_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is a fake that advances only while the reading thread waits."""

    class Clock(threading.Event):
        now_s = 100.0

        def wait(self, timeout: float | None = None) -> bool:
            Clock.now_s += timeout or 0.0
            return self.is_set()

        @staticmethod
        def monotonic() -> float:
            return Clock.now_s

        perf_counter = monotonic

    monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(module, "Event", Clock)
    mp4(tmp_path / "a.mp4", 3)
    with feed(str(tmp_path / "a.mp4"), FeedOptions(realtime=True)) as source:
        arrived_s = [arrival.arrived_s for arrival in source]
    assert arrived_s == pytest.approx([100.0, 100.0 + 1 / RATE, 100.0 + 2 / RATE])


def test_a_schedule_makes_up_for_a_short_delay_but_not_for_a_pause() -> None:
    schedule = Schedule()
    assert schedule.wait_s(5.0, 100.0) == 0
    assert schedule.wait_s(5.1, 100.02) == pytest.approx(0.08)
    assert schedule.wait_s(5.2, 100.4) == 0
    assert schedule.wait_s(5.3, 100.4) == 0
    assert schedule.wait_s(5.5, 100.4) == pytest.approx(0.1)
    assert schedule.wait_s(5.6, 160.0) == 0
    assert schedule.wait_s(5.7, 160.0) == pytest.approx(0.1)


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="no such file"):
        feed(str(tmp_path / "none.mp4"))


def test_remarks_on_the_pictures_of_a_camera_hide_its_password(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    peer = start(mjpeg([picture(0)] * 20, then_silent=True))
    with (
        caplog.at_level(logging.DEBUG),
        Feed(parse_address(f"http://u:hunter2@127.0.0.1:{peer.port}/?token=hunter2"), FORM, PATIENT) as source,
    ):
        source.take()
    assert f"http://127.0.0.1:{peer.port}/: 48×64 yuvj420p, scaled to 24×32 gray" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"policy": "newest"}, {"queue_length": 0}, {"silence_s": 0}, {"silence_s": float("nan")}, {"attempts": -1}],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: got"):
        FeedOptions(**options)


def piped(content: bytes, pipe: Path) -> list[Arrival]:
    """Send a film through a named pipe, and return the pictures that a feed yields."""
    os.mkfifo(pipe)

    def send() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(content)

    writer = threading.Thread(target=send)
    writer.start()
    try:
        with feed(str(pipe)) as taken:
            return list(taken)
    finally:
        writer.join(60)


@pytest.mark.parametrize("name", ["film.mkv", "film.ts"])
def test_a_film_is_read_through_a_named_pipe(name: str, tmp_path: Path) -> None:
    film = write_video(tmp_path / name, gray_levels((24, 32), [20 * step for step in range(12)]))
    assert len(piped(film.read_bytes(), tmp_path / "pipe")) == 12


def test_a_format_that_cannot_be_read_from_a_pipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="send Matroska or MPEG-TS through a pipe"):
        piped(bytes(10_000), tmp_path / "pipe")
