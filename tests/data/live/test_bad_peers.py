"""Peers that cannot be read give a clear error, in time, without more memory than the largest picture needs."""

import socket
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live import network
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Feed, FeedOptions
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ClipError, E3DError, SourceLost
from tests.data.live import peers
from tests.data.live.conftest import Start
from tests.data.live.peers import (
    MULTIPART,
    SIZE,
    Peer,
    answering,
    encoded,
    mjpeg,
    mp4,
    part,
    picture,
    request,
    respond,
    rtsp,
)

FORM = Form(image_size=(24, 32), channels=1)
SHORT_S, LONG_S = 0.5, 600.0
"""Maximum silence of tests that wait for it, and of tests that must not reach it, even on a slow machine (s)."""
CLIP = Path(__file__).parents[3] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"
PLAYLIST = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{CLIP}\n#EXT-X-ENDLIST\n"
NOT_READ = "not a video that can be read"
SWITCHED_ON = "check that the source is switched on"
UNAUTHORIZED = "got 401, the user name or password is missing or wrong"
LOG_IN = "give a valid user name and password as http://USER:PASSWORD@HOST"
PATIENT = FeedOptions(silence_s=LONG_S, attempts=0, policy="block")


def silent(peer: Peer, _: socket.socket, __: int) -> None:
    peer.stopped.wait()


def closing(_: Peer, __: socket.socket, ___: int) -> None:
    pass


def read(text: str, silence_s: float = LONG_S) -> list[int]:
    """Read a source to its end, and return the indices of its pictures."""
    options = FeedOptions(silence_s=silence_s, attempts=0, policy="block")
    with Feed(parse_address(text), FORM, options, remarks=Remarks(silent=True)) as source:
        return [arrival.index for arrival in source]


@pytest.mark.parametrize(
    ("scheme", "serve", "kind", "message"),
    [
        ("rtsp", silent, SourceLost, f"sent no picture that can be decoded within 0.5 s; {SWITCHED_ON}"),
        ("http", silent, SourceLost, "sent no picture that can be decoded within 0.5 s"),
        ("rtsp", rtsp(0, then_silent=True), SourceLost, "sent no picture that can be decoded within 0.5 s"),
        ("rtsp", closing, SourceLost, SWITCHED_ON),
        ("http", closing, SourceLost, SWITCHED_ON),
        ("rtsp", rtsp(0, refuse="401 Unauthorized"), ClipError, UNAUTHORIZED),
        ("rtsp", rtsp(0, refuse="404 Not Found"), ClipError, "got 404, nothing was found at this path"),
        ("http", answering("401 Unauthorized"), ClipError, LOG_IN),
        ("http", answering("403 Forbidden"), ClipError, "got 403, access is forbidden"),
        ("http", answering("404 Not Found"), ClipError, "got 404"),
        ("http", answering("418 I am a teapot"), ClipError, "refused the request"),
        ("http", answering("500 Internal Server Error"), SourceLost, "the server failed"),
        ("http", answering("200 OK", {"Content-Type": "text/html"}, b"<p>Log in</p>"), ClipError, NOT_READ),
        ("http", answering("200 OK", {"Content-Type": "application/vnd.apple.mpegurl"}, PLAYLIST.encode()), ClipError,
         NOT_READ),
        ("http", answering("200 OK", body=f"ffconcat version 1.0\nfile '{CLIP}'\n".encode()), ClipError, NOT_READ),
        ("http", answering("302 Found", {"Location": f"file://{CLIP}"}), ClipError, NOT_READ),
        ("http", answering("302 Found", {"Location": f"concat:{CLIP}"}), E3DError, ""),
        ("http", answering("302 Found", {"Location": "rtsp://127.0.0.1:1/"}), ClipError, NOT_READ),
        ("rtsp", answering("200 OK"), E3DError, ""),
    ],
)  # fmt: skip
def test_a_peer_that_cannot_be_read_is_an_error_at_once(
    scheme: str, serve: Callable[..., None], kind: type[E3DError], message: str, start: Start
) -> None:
    peer = start(serve)
    with pytest.raises(kind) as caught:
        read(
            f"{scheme}://user:hunter2@127.0.0.1:{peer.port}/cam?token=hunter2",
            SHORT_S if "within 0.5 s" in message else LONG_S,
        )
    text = str(caught.value)
    assert text.startswith(f"{scheme}://127.0.0.1:{peer.port}/cam: ")
    assert message in text
    assert "hunter2" not in text
    assert caught.value.__cause__ is None  # FFmpeg's own error shows the address


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_closed_port_refuses_the_connection(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceLost, match=f"refused the connection; {SWITCHED_ON}"):
        read(f"{scheme}://127.0.0.1:{port}/")


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_unknown_host_name_is_an_error(scheme: str) -> None:
    with pytest.raises(SourceLost, match="its host name cannot be resolved"):
        read(f"{scheme}://no-such-host.invalid/cam")


def test_a_redirect_to_another_address_of_http_is_followed(start: Start, tmp_path: Path) -> None:
    peer = start(answering("200 OK", body=mp4(tmp_path / "a.mp4", 3)))
    first = start(answering("302 Found", {"Location": f"http://127.0.0.1:{peer.port}/a.mp4"}))
    assert read(f"http://127.0.0.1:{first.port}/") == [0, 1, 2]


def test_a_file_over_http_that_breaks_off_is_not_read_from_its_start_again(start: Start, tmp_path: Path) -> None:
    content = mp4(tmp_path / "a.mp4", 60)
    peer = start(answering("200 OK", {"Content-Length": str(len(content))}, content[: len(content) - 200]))
    options = FeedOptions(silence_s=LONG_S, attempts=5)
    taken: list[int] = []
    address = parse_address(f"http://127.0.0.1:{peer.port}/")
    lost = pytest.raises(SourceLost, match=r"broke off after \d+ of 60 frames")
    with Feed(address, FORM, options, remarks=Remarks(silent=True)) as source, lost:
        taken.extend(arrival.index for arrival in source)
    assert taken == list(range(len(taken)))
    assert taken
    assert source.reconnects == 0


def test_a_file_over_http_that_stalls_is_lost_at_the_deadline(start: Start, tmp_path: Path) -> None:
    content = mp4(tmp_path / "a.mp4", 600)

    def serve(peer: Peer, connection: socket.socket, _: int) -> None:
        request(connection)
        respond(connection, "200 OK", {"Content-Length": str(len(content))}, content[:-500])
        peer.stopped.wait()

    with pytest.raises(SourceLost, match="no picture arrived for 2 s; check the source and the network"):
        read(f"http://127.0.0.1:{start(serve).port}/", 2.0)


def test_the_error_of_a_file_with_an_unreachable_index_says_how_to_move_the_index(start: Start, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 480, 640, 3), np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    peer = start(answering("200 OK", body=(tmp_path / "a.mp4").read_bytes()))
    with pytest.raises(ClipError, match="-movflags faststart"):
        read(f"http://127.0.0.1:{peer.port}/")


LARGE = part(encoded([picture(0, (6000, 6000))], "mjpeg")[0])
"""Height and width of a picture that exceeds the limit but still fits into memory."""


@pytest.mark.parametrize("ends", [True, False])
def test_pictures_over_the_limit_of_size_are_refused_before_they_are_decoded(ends: bool, start: Start) -> None:
    def serve(peer: Peer, connection: socket.socket, _: int) -> None:
        request(connection)
        respond(connection, "200 OK", MULTIPART)
        connection.sendall(LARGE)
        if not ends:
            peer.stopped.wait()

    message = "larger than 4320×8192" if ends else "pictures may have at most 4320×8192 pixels"
    with pytest.raises(E3DError, match=message):
        read(f"http://127.0.0.1:{start(serve).port}/", LONG_S if ends else SHORT_S)


def test_a_picture_over_the_limit_is_skipped(start: Start) -> None:
    def serve(peer: Peer, connection: socket.socket, _: int) -> None:
        request(connection)
        respond(connection, "200 OK", MULTIPART)
        for content in [*(small * 3), LARGE, *(small * 4)]:
            connection.sendall(content)
        peer.stopped.wait()

    small = [part(jpeg) for jpeg in encoded([picture(0)], "mjpeg")]
    address = parse_address(f"http://127.0.0.1:{start(serve).port}/")
    with Feed(address, FORM, PATIENT, remarks=Remarks(silent=True)) as source:
        arrivals = [arrival for _, arrival in zip(range(6), source, strict=False)]
    assert [arrival.begins_video for arrival in arrivals] == [True] + 5 * [False]  # the size did not change


def test_a_video_of_an_absurd_size_is_refused_before_it_is_decoded(start: Start, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 4096, 9000, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(9000, 4096, "yuv420p")))
        container.mux(stream.encode(None))
    peer = start(answering("200 OK", body=(tmp_path / "a.mkv").read_bytes()))
    with pytest.raises(ClipError, match="has pictures of 4096×9000 pixels, expected at most 4320×8192"):
        read(f"http://127.0.0.1:{peer.port}/")


def test_a_demuxer_that_would_ignore_the_limit_of_size_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with av.open(str(tmp_path / "a.flv"), "w", format="flv") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(300):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        container.mux(stream.encode(None))
    monkeypatch.setitem(network.FORMATS, "http", "flv")
    peer = start(answering("200 OK", body=(tmp_path / "a.flv").read_bytes()))
    with pytest.raises(ClipError, match=NOT_READ):
        read(f"http://127.0.0.1:{peer.port}/")


def test_damaged_pictures_of_a_camera_are_skipped(start: Start) -> None:
    (jpeg,) = encoded([picture(0)], "mjpeg")
    content = [picture(number) for number in range(8)]
    good = mjpeg(content)

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        good(peer, connection, number)
        for _ in range(3):
            broken = b"\xff\xd8" + jpeg[200:]
            connection.sendall(part(broken))
        for whole in encoded([picture(8)] * 4, "mjpeg"):
            connection.sendall(part(whole))
        peer.stopped.wait()

    with Feed(
        parse_address(f"http://127.0.0.1:{start(serve).port}/"),
        FORM,
        PATIENT,
        remarks=Remarks(silent=True),
    ) as source:
        assert [arrival.index for _, arrival in zip(range(11), source, strict=False)] == list(range(11))


def test_a_camera_without_video_is_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SDP", peers.SDP.replace("m=video 0 RTP/AVP 96", "m=audio 0 RTP/AVP 0"))
    with pytest.raises(ClipError, match="contains no video; give the address of a stream with video"):
        read(f"rtsp://127.0.0.1:{start(peers.rtsp(1)).port}/a")
