"""Sessions over a real WebSocket on loopback."""

import gc
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from e3d_deploy.card import Card, Window
from e3d_deploy.data.live.feed import Feed
from e3d_deploy.frames import to_pictures
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve import connections, run, websocket
from e3d_deploy.serve.protocol import MAX_TEXT
from e3d_deploy.serve.run import Running
from tests.data.live.peers import wait_until
from tests.fake_backend import FakeBackend, alone
from tests.serve.conftest import TOKEN, WAIT_S, Serve, Viewer, offered, patiently


def test_each_webcam_has_a_stream_of_its_own(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        ready = viewer.open(horizon=2)
        assert ready["type"] == "ready"
        assert (ready["image_size"], ready["channels"], ready["horizon"], ready["backend"]) == ([4, 8], 1, 2, "fake")
        for number, value in enumerate([10, 60, 110]):
            viewer.show(value)
            header, pictures = viewer.pictures()
            seen = [10, 60, 110][: number + 1]
            assert (header["index"], header["age"], header["horizon"]) == (number, number + 1, 2)
            np.testing.assert_array_equal(pictures["now"], np.full((4, 8, 1), value))
            np.testing.assert_array_equal(pictures["forecast"], to_pictures(alone(seen, 3))[1])
            assert header["latency_ms"] > 0
        np.testing.assert_array_equal(pictures["expected"], to_pictures(alone([10], 3))[1])
        expected = alone([10], 3)[1]
        assert header["error"] == pytest.approx(float(((expected - 110 / 255) ** 2).sum()), rel=1e-4)
        assert header["copy_error"] == pytest.approx(32 * (100 / 255) ** 2, rel=1e-4)


def test_unknown_values_are_null_and_their_picture_is_absent(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open(horizon=2)
        viewer.show(1)
        header, pictures = viewer.pictures()
    assert list(pictures) == header["pictures"] == ["now", "forecast"]
    assert header["error"] is header["copy_error"] is header["novelty"] is None


def test_the_novelty_is_sent_once_the_usual_error_is_known(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open(horizon=1)
        novelty = []
        for number in range(40):
            viewer.show(20 * (number % 2))
            novelty.append(viewer.pictures()[0]["novelty"])
    assert novelty[0] is None
    assert novelty[-1] is not None
    assert novelty[-1] >= 0


def test_the_horizon_changes_while_it_plays_and_is_bounded(serve: Serve, backend: FakeBackend) -> None:
    with Viewer(serve()) as viewer:
        assert viewer.open(horizon=99)["horizon"] == 3
        viewer.say("horizon", value=1)
        for _ in patiently():
            viewer.show(7)
            if viewer.pictures()[0]["horizon"] == 1:
                break
        before = len(backend.calls)
        viewer.show(7)
        _, pictures = viewer.pictures()
    assert len(backend.calls) == before + 1  # a forecast of one frame needs no step in addition to that of the push
    assert list(pictures) == ["now", "forecast", "expected"]


def test_a_reset_begins_a_new_state(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        for value in (5, 6, 7):
            viewer.show(value)
            viewer.pictures()
        viewer.say("reset")
        viewer.text("was_reset")
        viewer.show(8)
        header, pictures = viewer.pictures()
    assert header["age"] == 1
    np.testing.assert_array_equal(pictures["forecast"], to_pictures(alone([8], 3))[1])


def test_a_webcam_continues_with_a_new_state_after_a_pause(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.show(5)
        viewer.pictures()
        viewer.say("pause")
        viewer.text("paused")
        viewer.show(6)  # discarded during the pause
        viewer.text("stats")  # by now, the session has taken the picture
        viewer.say("resume")
        viewer.text("resumed")
        viewer.show(7)
        header, _ = viewer.pictures()
    assert (header["index"], header["age"], header["cut"]) == (2, 1, True)


def test_a_webcam_that_sends_nothing_during_a_pause_also_gets_a_new_state(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.show(5)
        viewer.pictures()
        for wish, answer in (("pause", "paused"), ("resume", "resumed")):
            viewer.say(wish)
            viewer.text(answer)
        viewer.show(7)
        header, _ = viewer.pictures()
    assert (header["index"], header["age"], header["cut"]) == (1, 1, True)


def test_all_queued_commands_are_carried_out_before_the_next_picture(serve: Serve, backend: FakeBackend) -> None:
    served = serve()
    with Viewer(served) as viewer:
        viewer.open(horizon=2)
        [session] = served.service._sessions.values()
        backend.gate.clear()
        viewer.show(1)
        assert backend.entered.wait(WAIT_S)
        for value in (1, 3):
            viewer.say("horizon", value=value)
        viewer.show(2)
        wait_until(lambda: session._commands.qsize() == 2)
        backend.gate.set()
        assert [viewer.pictures()[0]["horizon"] for _ in range(2)] == [2, 3]


def test_a_file_plays_to_its_end_in_order(serve: Serve, video: Path) -> None:
    with Viewer(serve(**offered(video))) as viewer:
        assert viewer.open("offer:1")["frames_per_second"] == 20
        headers = [viewer.pictures()[0] for _ in range(5)]
        texts, code = viewer.end()
    assert [header["index"] for header in headers] == [0, 1, 2, 3, 4]
    assert texts[-1] == {"type": "end", "reason": "the source has ended"}
    assert code == 1000


def test_a_source_with_another_frame_rate_than_training_gets_a_remark(
    serve: Serve, predictor: Predictor, video: Path
) -> None:
    remarks = []
    for rate in (20.0, 10.0):
        predictor.card = Card(window=Window.of_rates(4, 3, [rate]))
        with Viewer(serve(**offered(video))) as viewer:
            remarks.append(viewer.open("offer:1")["remark"])
        with Viewer(serve()) as viewer:
            assert viewer.open("webcam")["remark"] is None
    assert remarks == [None, "this source has a frame every 50 ms, the model was trained with one every 100 ms"]


def test_a_paused_file_waits(serve: Serve, video: Path) -> None:
    with Viewer(serve(**offered(video))) as viewer:
        viewer.open("offer:1")
        viewer.say("pause")
        viewer.text("paused")
        viewer.text("stats")
        before = viewer.text("stats")
        assert before["frames_per_second"] == 0
        viewer.say("resume")
        viewer.text("resumed")
        assert viewer.pictures()[0]["cut"] is False


def test_stats_are_sent_every_second(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open(horizon=1)
        for value in range(4):
            viewer.show(value)
            viewer.pictures()
        stats = viewer.text("stats")
    assert stats["frames_per_second"] > 0
    assert stats["p50_ms"] <= stats["p99_ms"]
    assert stats["mse"] > 0
    assert (stats["dropped_source"], stats["dropped_viewer"], stats["verdict"]) == (0, 0, None)


def test_a_model_that_does_not_beat_copying_gets_a_verdict(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open(horizon=1)
        for _ in range(40):  # a still scene: nothing beats copying
            viewer.show(200)
            viewer.pictures()
        for _ in patiently():
            if (stats := viewer.text("stats"))["verdict"] is not None:
                break
    assert stats["verdict"].startswith("1 frame ahead, copying the last picture is better than the forecast")


def test_a_viewer_closes_its_session(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.say("close")
        texts, code = viewer.end()
    assert texts[-1]["type"] == "end"
    assert code == 1000


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", "ü"])
def test_a_wrong_token_closes_with_4401(serve: Serve, token: str | None) -> None:
    with Viewer(serve(token=TOKEN)) as viewer:
        assert viewer.open(token=token)["code"] == "token"
        assert viewer.end() == ([], 4401)


def test_the_right_token_opens(serve: Serve) -> None:
    with Viewer(serve(token=TOKEN)) as viewer:
        assert viewer.open(token=TOKEN)["type"] == "ready"


@pytest.mark.parametrize("source", ["offer:2", "offer:", "offer:/etc/passwd", "clip:../1", "clip:x", "rtsp://a/b", ""])
def test_a_source_that_is_not_offered_closes_with_4403(serve: Serve, video: Path, source: str) -> None:
    with Viewer(serve(**offered(video))) as viewer:
        assert viewer.open(source)["code"] == "source"
        assert viewer.end() == ([], 4403)


def test_the_origin_of_the_page_is_checked(serve: Serve) -> None:
    served = serve(origins=("https://page.example",))
    own = served.address.rstrip("/")
    for origin in (own, "https://page.example"):
        with Viewer(served, origin=Origin(origin)) as viewer:
            assert viewer.open()["type"] == "ready"
    for origin in ("http://evil.example", "http://127.0.0.1:1", "null", "http://page.example"):
        with Viewer(served, origin=Origin(origin)) as viewer:
            texts, code = viewer.end()
            assert (texts[-1]["code"], code) == ("origin", 4403)


def test_a_host_of_another_name_is_refused_on_loopback(serve: Serve) -> None:
    with shaking_hands(serve(), host="rebound.example") as socket_:
        assert b" 403 " in socket_.recv(64)


def test_another_version_of_the_protocol_is_refused(serve: Serve) -> None:
    with Viewer(serve(), subprotocols=None) as viewer:
        assert viewer.text()["code"] == "protocol"
        assert viewer.end() == ([], 4400)


BAD_TEXTS = [
    "",
    "{",
    "[]",
    "null",
    '{"type":"dance"}',
    '{"type":"horizon"}',
    '{"type":"horizon","value":0}',
    '{"type":"horizon","value":"3"}',
    '{"type":"horizon","value":1e400}',
    '{"type":"open","source":"webcam","horizon":1}',
    "[" * 2000,
    "\x00",
]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_bad_message_closes_only_its_own_session(serve: Serve, text: str) -> None:
    served = serve()
    with Viewer(served) as other, Viewer(served) as viewer:
        other.open()
        viewer.open()
        viewer.socket.send(text)
        texts, code = viewer.end()
        assert (texts[-1]["code"], code) == ("bad_message", 4400)
        other.show(3)
        other.pictures()


def test_no_sequence_of_messages_harms_another_session(serve: Serve) -> None:
    served = serve()
    known = ["open", "horizon", "pause", "resume", "reset", "close"]
    values = st.none() | st.integers() | st.sampled_from(["webcam", "offer:1", *known]) | st.text()
    texts = st.dictionaries(st.sampled_from(["type", "value", "source", "horizon", "token"]), values).map(json.dumps)
    orders = st.sampled_from(known).map(lambda kind: json.dumps({"type": kind, "value": 1}))
    messages = st.lists(orders | texts | st.text() | st.binary() | st.just(b"\x07" * 32), max_size=12)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(opens=st.booleans(), sent=messages)
    def attack(opens: bool, sent: list[str | bytes]) -> None:
        with Viewer(served) as viewer:
            if opens:
                viewer.open()
            with suppress(ConnectionClosed):
                for message in sent:
                    viewer.socket.send(message)
        other.show(3)
        assert other.pictures()[0]["dropped"] == 0

    with Viewer(served) as other:
        other.open()
        attack()
    assert served.service.metrics.registry.get_sample_value("e3d_errors_total", {"code": "internal"}) is None


def test_a_first_message_that_does_not_open_is_refused(serve: Serve) -> None:
    for message in ('{"type":"pause"}', b"\x00" * 32):
        with Viewer(serve()) as viewer:
            viewer.socket.send(message)
            assert viewer.end()[1] == 4400


def test_a_text_that_is_too_long_closes_with_4413(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.socket.send(json.dumps({"type": "pause", "more": "x" * MAX_TEXT}))
        assert viewer.end()[1] == 4413


def test_a_message_above_the_largest_closes_with_1009(serve: Serve) -> None:
    served = serve()
    with Viewer(served) as other, Viewer(served) as viewer:
        other.open()
        viewer.open()
        viewer.socket.send(b"\x00" * (served.service.message_bytes + 1))
        assert viewer.end()[1] == 1009
        other.show(3)
        other.pictures()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_picture_of_another_size_closes_with_4400(serve: Serve, length: int) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.socket.send(b"\x00" * length)
        texts, code = viewer.end()
    assert code == 4400
    assert "32 bytes" in texts[-1]["message"]


def test_a_picture_for_a_file_is_refused(serve: Serve, video: Path) -> None:
    with Viewer(serve(**offered(video))) as viewer:
        viewer.open("offer:1")
        viewer.show(1)
        assert viewer.end()[1] == 4400


def test_too_many_messages_close_with_4429(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "TEXTS_PER_SECOND", 0.001)
    monkeypatch.setattr(websocket, "BURST_S", 5000)
    with Viewer(serve()) as viewer:
        viewer.open()
        with suppress(ConnectionClosed):  # the server may close before the last message is sent
            for _ in range(10):
                viewer.say("reset")
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("rate", 4429)


def test_a_session_above_the_limit_closes_with_4429_until_another_one_ends(serve: Serve) -> None:
    served = serve(max_sessions=1)
    with Viewer(served) as first:
        first.open()
        with Viewer(served) as second:
            assert second.open()["code"] == "full"
            assert second.end() == ([], 4429)
    wait_until(lambda: not served.service.metrics.registry.get_sample_value("e3d_sessions"))
    with Viewer(served) as third:
        assert third.open()["type"] == "ready"


def test_connections_without_a_session_are_limited(serve: Serve) -> None:
    served = serve()
    served.service.max_connections = 2
    with Viewer(served), Viewer(served):
        wait_until(lambda: served.service.connections == 2)
        with Viewer(served) as third:
            texts, code = third.end()
    assert (texts[-1]["code"], code) == ("full", 4429)


def test_a_session_above_the_memory_limit_is_refused(serve: Serve) -> None:
    served = serve(memory_limit_bytes=5000)
    assert served.service.streams.most_bytes(1) < 5000 < served.service.streams.most_bytes(20)
    with ExitStack() as stack:
        answers = [stack.enter_context(Viewer(served)).open() for _ in range(20)]
    assert answers[0]["type"] == "ready"
    assert answers[-1]["code"] == "full"
    assert "memory" in answers[-1]["message"]


def test_an_idle_session_ends_with_4408(serve: Serve) -> None:
    with Viewer(serve(idle_timeout_s=0.2)) as viewer:
        viewer.open()
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("idle", 4408)


def test_a_viewer_that_sends_no_first_message_is_disconnected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "OPEN_S", 0.1)
    with Viewer(serve()) as viewer:
        assert viewer.end()[1] == 4408


def test_a_file_that_breaks_off_closes_with_4404_and_names_no_path(serve: Serve, video: Path) -> None:
    served = serve(**offered(video))
    video.write_bytes(video.read_bytes()[:600])
    with Viewer(served) as viewer:
        viewer.say("open", source="offer:1", horizon=1)
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("unreadable", 4404)
    assert "walk.mp4" in texts[-1]["message"]
    assert str(video.parent) not in texts[-1]["message"]


def test_a_network_that_fails_ends_its_session_without_a_traceback(serve: Serve, backend: FakeBackend) -> None:
    served = serve()

    def fail(*_: object) -> None:
        raise RuntimeError("secret /srv/path")

    with Viewer(served) as viewer:
        viewer.open()
        backend.answer = fail
        viewer.show(1)
        texts, code = viewer.end()
    assert code == 1011
    assert "secret" not in json.dumps(texts)


def test_an_error_of_the_server_is_reported_and_closes_with_1011(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def fail(*_: object) -> None:
        raise ValueError("secret /srv/path")

    monkeypatch.setattr(served.service, "open_session", fail)
    with Viewer(served) as viewer:
        assert viewer.open()["code"] == "internal"
        texts, code = viewer.end()
    assert code == 1011
    assert "secret" not in json.dumps(texts)
    assert served.service.metrics.registry.get_sample_value("e3d_errors_total", {"code": "internal"}) == 1


def test_a_session_whose_thread_cannot_start_is_refused_and_not_counted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(max_sessions=1)

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("e3d_deploy.serve.session.Session.start", fail)
        with Viewer(served) as viewer:
            assert viewer.open()["code"] == "full"
            assert viewer.end() == ([], 4429)
    with Viewer(served) as viewer:
        assert viewer.open()["type"] == "ready"


def test_a_viewer_that_never_reads_loses_only_pictures_and_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STUCK_S", 2.0)
    monkeypatch.setattr(run, "SEND_BUFFER_BYTES", 4096)
    served = serve()
    sessions, wait = served.service.metrics.registry.get_sample_value, threading.Event().wait
    with Viewer(served) as other, shaking_hands(served) as deaf:
        assert b" 101 " in deaf.recv(64)
        other.open()
        text = json.dumps({"type": "open", "source": "webcam", "horizon": 1})
        deaf.sendall(frame_of(1, text.encode()))
        wait_until(lambda: sessions("e3d_sessions") == 2)
        for number, _ in enumerate(patiently()):  # the pictures fill all buffers, then the queue of the viewer
            if sessions("e3d_sessions") != 2:
                break
            with suppress(OSError):
                deaf.sendall(frame_of(2, bytes([number % 256]) * 32))
            if number % 50 == 0:
                other.show(number % 256)
                other.pictures()
            wait(0.002)
        assert sessions("e3d_drops_total", {"reason": "viewer"}) > 0
        other.show(1)
        assert other.pictures()[0]["dropped"] == 0


def test_a_viewer_that_never_reads_does_not_keep_the_server_from_stopping(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.serve.service.DRAIN_S", 0.2)
    monkeypatch.setattr(run, "SEND_BUFFER_BYTES", 4096)
    served = serve()
    with shaking_hands(served) as deaf:
        assert b" 101 " in deaf.recv(64)
        deaf.sendall(frame_of(1, json.dumps({"type": "open", "source": "webcam", "horizon": 1}).encode()))
        drops = served.service.metrics.registry.get_sample_value
        for _ in patiently():
            if drops("e3d_drops_total", {"reason": "viewer"}):
                break
            deaf.sendall(frame_of(2, bytes(32)))
            threading.Event().wait(0.002)
        served.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("e3d s")]


def frame_of(opcode: int, content: bytes) -> bytes:
    """Return a WebSocket frame as clients send it, masked with zeros."""
    length = bytes([0x80 | len(content)]) if len(content) < 126 else b"\xfe" + len(content).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + content


@contextmanager
def shaking_hands(served: Running, *, host: str | None = None) -> Iterator[socket.socket]:
    """Yield a socket that has sent the WebSocket handshake and has not read the response."""
    place = served.address.removeprefix("http://").rstrip("/")
    name, _, port = place.partition(":")
    with socket.socket() as connected:
        connected.settimeout(WAIT_S)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.connect((name, int(port)))
        connected.sendall(
            f"GET /v1/live HTTP/1.1\r\nHost: {host or place}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Protocol: e3d.v1\r\n\r\n".encode()
        )
        yield connected


def test_32_viewers_at_once_each_get_their_own_forecasts(serve: Serve) -> None:
    served = serve()
    with ExitStack() as stack:
        viewers = [stack.enter_context(Viewer(served)) for _ in range(32)]
        for viewer in viewers:
            assert viewer.open(horizon=1)["type"] == "ready"
        for step in range(3):
            for number, viewer in enumerate(viewers):
                viewer.show(number + step)
            for number, viewer in enumerate(viewers):
                _, pictures = viewer.pictures()
                expected = to_pictures(alone([number + one for one in range(step + 1)], 1))[0]
                np.testing.assert_array_equal(pictures["forecast"], expected)


def test_the_stream_of_a_viewer_that_disconnects_is_closed(serve: Serve) -> None:
    served = serve()
    with Viewer(served) as viewer:
        viewer.open()
        viewer.show(1)
        viewer.pictures()
        assert served.service.streams.stats()["streams"] == 1
    wait_until(lambda: not served.service.streams.stats()["streams"])


def test_the_decoder_of_a_viewer_that_disconnects_during_a_forecast_is_freed(
    serve: Serve, video: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Watched(Feed):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(weakref.ref(self))

    monkeypatch.setattr("e3d_deploy.serve.service.Feed", Watched)
    served = serve(**offered(video))
    gc.disable()  # the source, with its decoder threads, must be freed without a run of the garbage collector
    try:
        with Viewer(served) as viewer:
            viewer.open("offer:1")
            viewer.pictures()
            [session] = served.service._sessions.values()
            backend.entered.clear()
            backend.gate.clear()
            assert backend.entered.wait(WAIT_S)
        session._stopping.wait(WAIT_S)
        backend.gate.set()
        assert session.join(WAIT_S)
        [feed] = opened
        wait_until(lambda: feed() is None)
    finally:
        backend.gate.set()
        gc.enable()


def test_a_server_that_stops_notifies_each_viewer(serve: Serve) -> None:
    served = serve()
    with Viewer(served) as one, Viewer(served) as two:
        for viewer in (one, two):
            viewer.open()
        served.stop()
        for viewer in (one, two):
            texts, code = viewer.end()
            assert texts[-1] == {"type": "end", "reason": "the server is shutting down"}
            assert code == 1001
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("e3d s")]
