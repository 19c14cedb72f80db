"""Uploads are limited while they arrive, and checked before they are decoded."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from e3d_deploy.serve import checks, security
from tests.serve.conftest import Serve, Viewer


def post(client: httpx.Client, content: bytes, name: str = "walk.mp4", path: str = "/v1/predict") -> httpx.Response:
    return client.post(path, files={"clip": (name, content)})


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and code of an error, and check that its message shows no path and no code of the server."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message"}
    assert not any(word in answer.text for word in ("/tmp", "Traceback", ".py", "e3d-upload", "frame_0000"))
    return answer.status_code, error["code"]


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header states a size, and whose data contains only a few pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def small(serve: Serve) -> Iterator[httpx.Client]:
    """Yield a client of a server whose upload limit is 100 kB."""
    with httpx.Client(base_url=serve(max_upload_bytes=100_000).address, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/clips"])
def test_an_upload_above_the_limit_is_refused(small: httpx.Client, path: str) -> None:
    assert problem(post(small, bytes(200_000), path=path)) == (413, "too_large")


def test_an_upload_without_a_length_is_cut_off_while_it_arrives(
    small: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "LINGER_S", 0.1)

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\n'
        for _ in range(100_000):
            yield bytes(10_000)
        raise AssertionError("the server read a gigabyte")

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with suppress(httpx.TransportError):  # the server may close the connection while the client sends
        assert problem(small.post("/v1/predict", content=endless(), headers=headers)) == (413, "too_large")


def test_a_form_that_is_longer_than_its_content_length_is_incomplete(serve: Serve) -> None:
    """uvicorn reads only as many bytes as the header states, so the form is truncated and refused."""
    with httpx.Client(base_url=serve().address) as client:
        request = client.build_request("POST", "/v1/predict", files={"clip": ("a", bytes(1000))})
        request.headers["Content-Length"] = "300"
        content = request.read()[:300]
        answer = client.post("/v1/predict", content=content, headers={"Content-Type": request.headers["content-type"]})
    assert answer.status_code in (400, 422)
    problem(answer)


def test_a_failed_upload_leaves_no_files(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with httpx.Client(base_url=serve(max_upload_bytes=10_000_000).address) as client:
        kept = set(tmp_path.rglob("*"))
        assert post(client, b"\x00\x00\x00\x18ftypmp42" + bytes(3_000_000)).status_code == 422
        assert post(client, bytes(20_000_000)).status_code == 413
        assert post(client, png(20_000, 10_000), "a.png").status_code == 422
        assert set(tmp_path.rglob("*")) == kept


def test_clips_expire_and_end_with_the_server(
    serve: Serve, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    served = serve()
    with httpx.Client(base_url=served.address) as client:
        source = post(client, video.read_bytes(), path="/v1/clips").json()["source"]
        other = post(client, video.read_bytes(), path="/v1/clips").json()["source"]
    with Viewer(served) as viewer:
        assert viewer.open(source)["frames_per_second"] == 20
        viewer.pictures()
    clips = served.service.clips
    assert len(list(clips.folder.iterdir())) == len(clips) == 2
    clips._used_s[other.removeprefix("clip:")] -= 1000
    clips.expire()
    assert len(list(clips.folder.iterdir())) == len(clips) == 1
    with Viewer(served) as viewer:
        assert viewer.open(other)["code"] == "source"
    served.stop()
    served.service.close()
    assert not clips.folder.exists()


def test_a_clip_that_is_played_does_not_expire(serve: Serve, video: Path) -> None:
    served = serve()
    with httpx.Client(base_url=served.address) as client:
        source = post(client, video.read_bytes(), path="/v1/clips").json()["source"]
    with Viewer(served) as viewer:
        viewer.open(source)
        served.service.clips._used_s[source.removeprefix("clip:")] -= 1000
        served.service.expire_clips()
        assert len(served.service.clips) == 1


def test_clips_above_the_limit_of_stored_clips_are_refused(
    serve: Serve, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    served.service.clips._most_bytes = 3 * video.stat().st_size // 2
    with httpx.Client(base_url=served.address) as client:
        assert post(client, video.read_bytes(), path="/v1/clips").status_code == 201
        answer = post(client, video.read_bytes(), path="/v1/clips")
    assert problem(answer) == (429, "full")
    assert answer.headers["Retry-After"]


def test_an_array_cannot_be_played(client: httpx.Client) -> None:
    content = npz(frames=np.zeros((12, 4, 8, 1), np.uint8))
    assert problem(post(client, content, "a.npz", "/v1/clips")) == (422, "unreadable")


def test_a_zip_bomb_is_refused_by_its_declared_size(client: httpx.Client) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("frames.npy", "w") as member:
        for _ in range(500):
            member.write(bytes(1_000_000))
    assert len(file.getvalue()) < 1_000_000
    assert problem(post(client, file.getvalue(), "a.npz")) == (422, "bomb")


def test_a_zip_that_declares_too_small_a_size_is_damaged(client: httpx.Client) -> None:
    content = bytearray(npz(frames=np.zeros((100, 4, 8, 1), np.uint8)))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (200).to_bytes(4, "little")
    assert problem(post(client, bytes(content), "a.npz")) == (422, "unreadable")


@pytest.mark.parametrize("shape", [b"(10000000, 4, 8, 1), }", b"(12, 4, 8, 1, }       ", b"(1e9, 4, 8, 1), }     "])
def test_an_array_with_a_wrong_header_is_damaged(client: httpx.Client, shape: bytes) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((12, 4, 8, 1), np.uint8))
    content = file.getvalue().replace(b"(12, 4, 8, 1), }      ", shape)
    assert content != file.getvalue()
    assert problem(post(client, content, "a.npy")) == (422, "unreadable")


def test_a_zip_with_a_huge_table_of_contents_is_refused(client: httpx.Client) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(1500):
            archive.writestr(f"{number}.npy", b"")
    assert problem(post(client, file.getvalue(), "a.npz")) == (422, "bomb")


def test_pickles_are_not_loaded(client: httpx.Client) -> None:
    content = npz(frames=np.array([{"a": 1}], object))
    assert problem(post(client, content, "a.npz")) == (422, "unreadable")


@pytest.mark.parametrize("size", [(20_000, 10_000), (8_200, 8_200), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(client: httpx.Client, size: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**20)  # so that the limit of the server applies, not that of Pillow
        assert problem(post(client, png(*size), "a.png")) == (422, "pixels")


def test_pictures_with_too_many_pixels_in_total_are_refused(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_PIXELS_IN_ALL", 199)
    files = [("clip", (f"{number}.png", png(10, 10))) for number in range(2)]
    answer = client.post("/v1/predict", files=files)
    assert problem(answer) == (422, "pixels")
    assert answer.json()["error"]["message"].startswith("1.png: ")


def test_a_timeout_after_the_upload_is_not_reported_as_a_slow_upload(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("e3d_deploy.serve.posts.predict", fail)
    assert problem(post(client, npz(frames=np.zeros((12, 4, 8, 1), np.uint8)), "a.npz")) == (500, "internal")


def test_a_gif_of_too_many_pixels_is_refused(client: httpx.Client) -> None:
    content = b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + b"\0\0\0;"
    assert problem(post(client, content, "a.gif"))[0] == 422


def test_a_video_that_is_too_long_is_refused(
    client: httpx.Client, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.serve.predict.MAX_FRAMES", 39)
    assert problem(post(client, video.read_bytes())) == (422, "length")


def test_a_video_that_takes_too_long_to_decode_is_refused(
    client: httpx.Client, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.serve.predict.DECODING_S", -1.0)
    assert problem(post(client, video.read_bytes())) == (422, "length")


def test_a_video_of_absurd_size_is_refused(client: httpx.Client, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_PIXELS", 31)
    assert problem(post(client, video.read_bytes())) == (422, "pixels")
    assert problem(post(client, video.read_bytes(), path="/v1/clips")) == (422, "pixels")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + bytes(18),
        b"\x93NUMPY\x01\x00",
        b"GIF89a",
        b"\x00\x00\x00\x18ftypmp42",
        b"G" + bytes(187) + b"G" + bytes(187),
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/clips"])
def test_files_that_cannot_be_read_are_refused(client: httpx.Client, content: bytes, path: str) -> None:
    assert problem(post(client, content, path=path)) == (422, "unreadable")


def test_file_names_are_shown_without_folders_and_control_characters(client: httpx.Client) -> None:
    answer = post(client, b"text", "../../etc/a\x1b[31m.mp4")
    assert answer.json()["error"]["message"].startswith("a")
    assert "etc" not in answer.text
    assert "\x1b" not in answer.text
