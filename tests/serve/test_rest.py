"""REST endpoints: the model, predictions, health and metrics."""

import asyncio
import io
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve import predict as predict_module
from e3d_deploy.serve import run
from e3d_deploy.serve import service as service_module
from e3d_deploy.serve.page_files import PAGE_TYPES, page_files
from tests.data.live.peers import wait_until
from tests.fake_backend import FakeBackend, alone
from tests.serve.conftest import TOKEN, WAIT_S, Serve, Viewer, offered
from tests.serve.test_uploads import npz, post, problem

FORM = Form(image_size=(4, 8), channels=1)
VALUES = [20 * number for number in range(12)]
FRAMES = np.array(VALUES, np.uint8)[:, None, None, None] * np.ones((1, 4, 8, 1), np.uint8)
"""A clip of 12 pictures, of which the last 10 are the context."""


def frames_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert list(arrays) == ["frames"]
        return arrays["frames"]


def expected(horizon: int) -> np.ndarray:
    return np.moveaxis(alone(VALUES[-10:], horizon), -3, -1)[None]


def test_the_model_and_its_limits_are_described(serve: Serve, video: Path) -> None:
    answer = httpx.get(serve(max_sessions=5, **offered(video)).address + "v1/model").json()
    assert answer == {
        "name": "fake",
        "backend": "fake",
        "precision": "fp32",
        "image_size": [4, 8],
        "channels": 1,
        "context": 10,
        "horizon": 3,
        "frames_per_second": None,
        "renewal": "none",
        "sources": [{"id": "1", "name": "walk.mp4"}],
        "limits": {"upload_bytes": 100_000_000, "message_bytes": 16384, "sessions": 5},
    }


def test_a_clip_gets_its_forecast(client: httpx.Client) -> None:
    answer = post(client, npz(frames=FRAMES), "a.npz")
    assert answer.headers["content-type"] == "application/x-npz"
    found = frames_of(answer)
    assert (found.shape, found.dtype) == ((1, 3, 4, 8, 1), np.float32)
    np.testing.assert_array_equal(found, expected(3))


def test_the_horizon_can_be_chosen(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", files={"clip": ("a.npz", npz(frames=FRAMES))}, data={"horizon": "2"})
    np.testing.assert_array_equal(frames_of(answer), expected(2))


def test_an_array_without_a_name_is_read_too(client: httpx.Client) -> None:
    file = io.BytesIO()
    np.save(file, FRAMES)
    np.testing.assert_array_equal(frames_of(post(client, file.getvalue(), "a.npy")), expected(3))


def test_several_pictures_are_one_clip_in_their_order(client: httpx.Client) -> None:
    files = []
    for number, picture in enumerate(FRAMES):
        content = io.BytesIO()
        Image.fromarray(picture[..., 0]).save(content, "png")
        files.append(("clip", (f"{12 - number}.png", content.getvalue())))
    np.testing.assert_array_equal(frames_of(client.post("/v1/predict", files=files)), expected(3))


def test_the_last_pictures_of_a_video_are_the_context(client: httpx.Client, video: Path) -> None:
    last = read_clips(video, FORM).clips[0][-10:]
    found = frames_of(post(client, video.read_bytes()))
    np.testing.assert_array_equal(found, frames_of(post(client, npz(frames=last), "a.npz")))


def test_a_gif_is_read(client: httpx.Client) -> None:
    content = io.BytesIO()
    first, *others = [Image.fromarray(picture[..., 0]) for picture in FRAMES]
    first.save(content, "gif", save_all=True, append_images=others, duration=100)
    assert frames_of(post(client, content.getvalue(), "a.gif")).shape == (1, 3, 4, 8, 1)


def test_a_video_forecast_has_the_frame_rate_of_the_clip(client: httpx.Client, video: Path, tmp_path: Path) -> None:
    answer = client.post("/v1/predict", files={"clip": ("a.mp4", video.read_bytes())}, data={"format": "mp4"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "forecast.mp4").write_bytes(answer.content)
    clips = read_clips(tmp_path / "forecast.mp4", FORM)
    assert (len(clips.clips[0]), clips.rate) == (3, 20)


@pytest.mark.parametrize(
    "data",
    [
        {"horizon": "0"},
        {"horizon": "4"},
        {"horizon": "-1"},
        {"horizon": "x"},
        {"horizon": ""},
        {"horizon": "²"},
        {"horizon": "9" * 1000},
        {"horizon": ["1", "2"]},
        {"format": "exe"},
        {"path": "/etc/passwd"},
    ],
)
def test_an_invalid_field_is_refused(client: httpx.Client, data: dict[str, str]) -> None:
    answer = client.post("/v1/predict", files={"clip": ("a.npz", npz(frames=FRAMES))}, data=data)
    assert problem(answer)[0] == 422


def test_a_clip_that_is_too_short_is_refused_with_its_length(client: httpx.Client) -> None:
    answer = post(client, npz(frames=FRAMES[:9]), "short.npz")
    assert problem(answer) == (422, "length")
    assert answer.json()["error"]["message"] == "short.npz: has 9 frames, expected 10 or more"


@pytest.mark.parametrize(
    "frames",
    [np.zeros((12, 5, 8, 1), np.uint8), np.zeros((12, 4, 8, 1), np.int32), np.full((12, 4, 8, 1), np.nan, np.float32)],
)
def test_frames_of_another_form_are_refused(client: httpx.Client, frames: np.ndarray) -> None:
    assert problem(post(client, npz(frames=frames), "a.npz")) == (422, "shape")


def test_several_clips_are_refused(client: httpx.Client) -> None:
    assert problem(post(client, npz(frames=np.stack([FRAMES, FRAMES])), "a.npz")) == (422, "shape")


def test_several_files_that_are_not_pictures_are_refused(client: httpx.Client) -> None:
    files = [("clip", ("a.npz", npz(frames=FRAMES)))] * 2
    assert problem(client.post("/v1/predict", files=files)) == (422, "field")


def test_a_request_that_is_not_a_form_is_refused(client: httpx.Client) -> None:
    assert problem(client.post("/v1/predict", json={"clip": "a"})) == (415, "form")
    assert problem(client.post("/v1/predict")) == (415, "form")
    headers = {"Content-Type": "multipart/form-data"}
    assert problem(client.post("/v1/predict", content=b"x", headers=headers)) == (400, "form")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert problem(client.post("/v1/predict", content=b"x", headers=headers)) == (400, "form")
    assert problem(client.post("/v1/predict", files={"other": ("a", b"x")})) == (422, "field")
    assert problem(client.post("/v1/predict", data={"clip": "x"}, files={"clip": ("a", b"x")})) == (422, "field")


def test_unknown_paths_and_methods_are_errors_of_the_same_form(client: httpx.Client) -> None:
    assert problem(client.get("/v1/none")) == (404, "not_found")
    answer = client.delete("/v1/model")
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_a_failing_network_gives_status_500_without_details(client: httpx.Client, backend: FakeBackend) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    backend.answer = fail
    answer = post(client, npz(frames=FRAMES), "a.npz")
    assert problem(answer) == (500, "internal")
    assert "secret" not in answer.text


def test_predictions_count_as_sessions(serve: Serve) -> None:
    served = serve(max_sessions=1)
    with Viewer(served) as viewer, httpx.Client(base_url=served.address) as client:
        viewer.open()
        answer = post(client, npz(frames=FRAMES), "a.npz")
    assert problem(answer) == (503, "full")
    assert answer.headers["Retry-After"]


def test_too_many_requests_get_status_429(serve: Serve, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_REQUESTS", 1)
    served = serve()
    backend.gate.clear()
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=served.address, timeout=30) as client:
        first = threading.Thread(target=lambda: answers.append(post(client, npz(frames=FRAMES), "a.npz")))
        first.start()
        backend.entered.wait(30)
        answer = httpx.post(served.address + "v1/predict", files={"clip": ("a.npz", npz(frames=FRAMES))})
        assert problem(answer) == (429, "busy")
        assert answer.headers["Retry-After"]
        backend.gate.set()
        first.join(30)
    assert answers[0].status_code == 200


def test_a_running_prediction_is_completed_when_the_server_stops(serve: Serve, backend: FakeBackend) -> None:
    served = serve()
    backend.gate.clear()
    answers: list[httpx.Response] = []
    address = served.address
    files = {"clip": ("a.npz", npz(frames=FRAMES))}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(address + "v1/predict", files=files, timeout=30))
    )
    asking.start()
    backend.entered.wait(30)
    stopping = threading.Thread(target=served.stop)
    stopping.start()
    wait_until(lambda: served.service.stopping)
    backend.gate.set()
    stopping.join(30)
    asking.join(30)
    assert frames_of(answers[0]).shape == (1, 3, 4, 8, 1)


def test_decoding_a_long_clip_is_aborted_when_the_server_stops(
    serve: Serve, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "DRAIN_S", 0.1)
    monkeypatch.setattr(run, "GRACE_S", 1)
    decoded = threading.Event()

    def endless() -> Iterator[np.ndarray]:
        while True:
            decoded.wait(0.01)
            decoded.set()
            yield FRAMES[0]

    monkeypatch.setattr(predict_module, "MAX_FRAMES", 10**12)
    monkeypatch.setattr(
        predict_module, "play", lambda *_, **__: SimpleNamespace(pictures=endless(), frames_per_second=10)
    )

    def ask(address: str) -> None:
        with suppress(httpx.HTTPError), httpx.Client(base_url=address, timeout=WAIT_S) as client:
            post(client, video.read_bytes())

    served = serve()
    asking = threading.Thread(target=ask, args=(served.address,))
    asking.start()
    assert decoded.wait(WAIT_S)
    served.stop()
    asking.join(WAIT_S)
    wait_until(lambda: not any(thread.name.startswith("e3d predict") for thread in threading.enumerate()))


def test_a_server_can_be_stopped_after_a_signal_interrupted_its_wait(serve: Serve) -> None:
    served = serve()
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        served.wait()
    served.stop()
    assert not any(thread.name == "e3d serve" for thread in threading.enumerate())
    timer.join()


def test_draining_twice_does_not_take_twice_the_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "DRAIN_S", 0.01)
    service = serve().service
    with service.working():
        asyncio.run(service.drain())
        monkeypatch.setattr(service_module, "DRAIN_S", 3600.0)
        asyncio.run(asyncio.wait_for(service.drain(), WAIT_S))


def test_a_server_that_stops_is_healthy_but_not_ready(serve: Serve) -> None:
    served = serve()
    with httpx.Client(base_url=served.address) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.head("/healthz").status_code == client.head("/readyz").status_code == 200
        served.service.stop_sessions()
        assert client.get("/healthz").status_code == 200
        assert problem(client.get("/readyz")) == (503, "stopping")
        assert client.head("/readyz").status_code == 503
        assert problem(post(client, npz(frames=FRAMES))) == (503, "stopping")
    with Viewer(served) as viewer:
        assert viewer.open()["code"] == "stopping"
        assert viewer.end() == ([], 1001)


def test_metrics_count_what_was_served(serve: Serve, predictor: Predictor) -> None:
    served = serve()
    with Viewer(served) as viewer, httpx.Client(base_url=served.address) as client:
        viewer.open()
        for value in range(3):
            viewer.show(value)
            viewer.pictures()
        post(client, npz(frames=FRAMES), "a.npz")
        post(client, b"text")
        answer = client.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for line in (
        "e3d_frames_total 3.0",
        "e3d_forecasts_total 4.0",
        "e3d_predictions_total 1.0",
        "e3d_sessions 1.0",
        'e3d_sessions_opened_total{source="webcam"} 1.0',
        'e3d_errors_total{code="unreadable"} 1.0',
        "e3d_latency_seconds_count 3.0",
    ):
        assert line in lines
    assert any(line.startswith("e3d_build_info{") and 'model="fake"' in line for line in lines)


def test_the_page_needs_no_token_and_may_load_only_its_own_files(serve: Serve) -> None:
    served = serve(token=TOKEN)
    with httpx.Client(base_url=served.address.partition("#")[0]) as client:
        for path, file in page_files().items():
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, file.read_bytes())
            assert answer.headers["content-type"].partition(";")[0] == PAGE_TYPES[file.suffix]
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        page = client.get("/").text
    assert "/" in page_files()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|https?://", page)


def test_every_response_has_the_security_headers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("e3d_deploy.serve.posts.predict", fail)
    served = serve(token=TOKEN)
    known = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=served.address) as client:
        answers = [
            client.get("/v1/model", headers=known),
            client.get("/v1/model"),
            client.get("/v1/model", headers={"Origin": "http://evil.example"}),
            client.get("/v1/none", headers=known),
            client.delete("/v1/model", headers=known),
            client.post("/v1/predict", headers=known),
            client.post("/v1/predict", headers=known, files={"clip": ("a.npz", npz(frames=FRAMES))}),
        ]
        page = client.get("/")
        metrics = client.get("/metrics", headers=known).text.splitlines()
    assert [answer.status_code for answer in answers] == [200, 401, 403, 404, 405, 415, 500]
    for answer in (page, *answers):
        policy = answer.headers["content-security-policy"]
        for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert part in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["permissions-policy"] == "camera=(self), microphone=(), geolocation=()"
        assert answer.headers["cache-control"] == ("no-cache" if answer is page else "no-store")
    for code in ("token", "origin", "not_found", "method_not_allowed", "form", "internal"):
        assert f'e3d_errors_total{{code="{code}"}} 1.0' in metrics


def test_a_page_of_another_origin_cannot_post(client: httpx.Client) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = client.post("/v1/predict", files={"clip": ("a.npz", npz(frames=FRAMES))}, headers=headers)
        assert problem(answer) == (403, "origin")
    assert problem(client.get("/v1/model", headers={"Host": "rebound.example"})) == (403, "host")


def test_a_token_is_required_everywhere_except_for_the_page_and_health_checks(serve: Serve) -> None:
    with httpx.Client(base_url=serve(token=TOKEN).address) as client:
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/v1/model", "/metrics", "/openapi.json", "/v1/none", "/page/../v1/model", "/v1/predict"):
            answer = client.get(path)
            assert problem(answer) == (401, "token")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for given in (TOKEN + "x", TOKEN[:-1], "x", "ü"):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert client.get("/v1/model", headers=headers).status_code == 401
        assert client.get("/v1/model", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        assert client.get("/v1/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_an_upload_without_the_token_is_refused_before_its_body_is_read(serve: Serve) -> None:
    place = serve(token=TOKEN).address.removeprefix("http://").partition("/")[0]
    host, _, port = place.partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: {place}\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 401"
