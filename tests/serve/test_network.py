"""Sessions of network sources."""

import json
import socket
from functools import partial
from pathlib import Path

import pytest

from e3d_deploy.data.live.feed import FeedOptions
from e3d_deploy.serve.offers import offers_of
from tests.data.live.conftest import Start
from tests.data.live.peers import RATE, answering, mjpeg, mp4, picture, rtsp
from tests.serve.conftest import Serve, Viewer, patiently


def test_two_viewers_watch_an_rtsp_camera(serve: Serve, start: Start) -> None:
    address = f"rtsp://user:secret@127.0.0.1:{start(rtsp(None)).port}/door"
    served = serve(offers=offers_of([address], lambda _: None))
    with Viewer(served) as one, Viewer(served) as two:
        for viewer in (one, two):
            assert viewer.open("offer:1", horizon=1)["frames_per_second"] == RATE
        for viewer in (one, two):
            headers = [viewer.pictures()[0] for _ in range(5)]
            ages = [header["age"] for header in headers]
            assert sorted(set(ages)) == ages  # some pictures may have been dropped, because a camera does not wait
            assert headers[4]["time_s"] > headers[1]["time_s"]  # the first picture of RTSP has no time
            assert headers[4]["error"] is not None


def test_a_camera_continues_with_a_new_state_after_a_pause(serve: Serve, start: Start) -> None:
    address = f"http://127.0.0.1:{start(mjpeg([picture(number % 20) for number in range(500)], pause_s=0.02)).port}/"
    with Viewer(serve(offers=offers_of([address], lambda _: None))) as viewer:
        viewer.open("offer:1")
        for _ in patiently():
            if viewer.pictures()[0]["age"] >= 3:
                break
        viewer.say("pause")
        viewer.text("paused")
        viewer.text("stats")  # some pictures have arrived in the meantime
        viewer.say("resume")
        viewer.text("resumed")
        header, _ = viewer.pictures()
        assert (header["age"], header["cut"]) == (1, True)


def test_a_paused_file_over_http_waits(serve: Serve, start: Start, tmp_path: Path) -> None:
    content = mp4(tmp_path / "film.mp4", 100)
    address = f"http://127.0.0.1:{start(answering('200 OK', {'Content-Type': 'video/mp4'}, content)).port}/film.mp4"
    with Viewer(serve(offers=offers_of([address], lambda _: None))) as viewer:
        viewer.open("offer:1")
        viewer.pictures()
        viewer.say("pause")
        viewer.text("paused")
        for _ in range(2):
            viewer.text("stats")  # a player that did not wait would have dropped pictures by now
        viewer.say("resume")
        viewer.text("resumed")
        header, _ = viewer.pictures()
    assert (header["cut"], header["dropped"]) == (False, 0)


@pytest.mark.parametrize("refuse", ["401 Unauthorized", "404 Not Found"])
def test_a_camera_that_refuses_closes_with_4404_without_showing_a_password(
    serve: Serve, start: Start, refuse: str
) -> None:
    address = f"rtsp://user:secret@127.0.0.1:{start(rtsp(None, refuse=refuse)).port}/door"
    with Viewer(serve(offers=offers_of([address], lambda _: None))) as viewer:
        viewer.say("open", source="offer:1", horizon=1)
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("unreadable", 4404)
    assert "secret" not in json.dumps(texts)


def test_a_camera_that_cannot_be_reached_closes_with_4503(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"rtsp://user:secret@127.0.0.1:{taken.getsockname()[1]}/door"
    with Viewer(serve(offers=offers_of([address], lambda _: None))) as viewer:
        viewer.say("open", source="offer:1", horizon=1)
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("source_lost", 4503)
    assert "refused the connection" in texts[-1]["message"]
    assert "secret" not in json.dumps(texts)


def test_a_camera_that_falls_silent_closes_with_4503(
    serve: Serve, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = partial(FeedOptions, silence_s=2.0, attempts=0)
    monkeypatch.setattr("e3d_deploy.serve.service.FeedOptions", impatient)
    peer = start(mjpeg([picture(number) for number in range(30)], then_silent=True, pause_s=0.02))
    with Viewer(serve(offers=offers_of([f"http://127.0.0.1:{peer.port}/"], lambda _: None))) as viewer:
        viewer.open("offer:1")
        assert viewer.pictures()[0]["age"] >= 1
        texts, code = viewer.end()
    assert (texts[-1]["code"], code) == ("source_lost", 4503)
    assert "no picture arrived for 2 s" in texts[-1]["message"]
