"""HTTP and RTSP servers for tests of live sources, correct and faulty, in threads."""

import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread

import av
import numpy as np
from numpy.typing import NDArray

SIZE = (48, 64)
"""Height and width of the pictures that are served."""
MULTIPART = {"Content-Type": "multipart/x-mixed-replace; boundary=frame"}
RATE = 25


def picture(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a colour picture of one gray level, which encodes its number."""
    return np.full((*size, 3), 20 + 10 * (number % 20), np.uint8)


def number_of(taken: NDArray[np.uint8]) -> int:
    """Return the number of a picture, modulo 20, from its decoded gray level."""
    return round((float(taken.mean()) - 20) / 10)


def encoded(pictures: Sequence[NDArray[np.uint8]], codec: str) -> list[bytes]:
    """Return one packet for each picture, in order; with H.264, decoding can begin at each packet."""
    context = av.CodecContext.create(codec, "w")
    height, width = pictures[0].shape[:2]
    context.height, context.width, context.time_base, context.framerate = (
        height,
        width,
        Fraction(1, RATE),
        Fraction(RATE),
    )
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if codec == "libx264":
        context.gop_size = 1
        context.options = {"tune": "zerolatency", "preset": "ultrafast", "x264-params": "repeat-headers=1"}
    packets = []
    for pixels in pictures:
        packets += context.encode(av.VideoFrame.from_ndarray(pixels, "rgb24"))
    return [bytes(packet) for packet in [*packets, *context.encode(None)]]


def mp4(path: Path, count: int, size: tuple[int, int] = SIZE) -> bytes:
    """Write an MP4 of numbered pictures, whose index comes first, to a path, and return its bytes."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, size), "rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


class Peer:
    """Server on a port of its own, which serves each connection in a thread.

    Args:
        serve: called with this peer, a connection and the number of the connection, from 0; the connection is closed
            when it returns.
        port: port to listen on; 0 selects a free port.
    """

    def __init__(self, serve: Callable[["Peer", socket.socket, int], None], port: int = 0) -> None:
        self.stopped, self.connections, self._serve = Event(), 0, serve
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Close all connections and wait for the threads."""
        self.stopped.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = Thread(target=self._speak, args=(connection, self.connections))
            self.connections += 1
            self._threads.append(thread)
            thread.start()

    def _speak(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            self._serve(self, connection, number)


def request(connection: socket.socket) -> tuple[str, dict[str, str]]:
    """Read an HTTP or RTSP request, and return its first line and its headers with lower-case names.

    RTP data between requests is dropped.
    """
    text = b""
    while b"\r\n\r\n" not in text:
        if not (more := connection.recv(4096)):
            raise OSError("closed")
        text += more
        while text[:1] == b"$" and len(text) >= 4:
            text = text[4 + struct.unpack(">H", text[2:4])[0] :]
    first, *lines = text.decode().split("\r\n\r\n")[0].split("\r\n")
    return first, {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}


def respond(connection: socket.socket, status: str, headers: dict[str, str], body: bytes = b"") -> None:
    """Send an HTTP response."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def answering(status: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Callable[..., None]:
    """Return an HTTP server that sends the same response to every request."""

    def serve(_: Peer, connection: socket.socket, __: int) -> None:
        request(connection)
        respond(connection, status, {"Content-Length": str(len(body)), **(headers or {})}, body)

    return serve


def part(jpeg: bytes) -> bytes:
    """Return a part of MJPEG over HTTP with one picture."""
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)


def mjpeg(
    pictures: Sequence[NDArray[np.uint8]], *, then_silent: bool = False, pause_s: float = 0.0, before: bytes = b""
) -> Callable[..., None]:
    """Return a server of MJPEG over HTTP.

    Args:
        then_silent: send nothing after the pictures, instead of closing the connection.
        pause_s: pause after each picture (s).
        before: bytes that are sent before each part.
    """
    content = [before + part(jpeg) for pixels in pictures for jpeg in encoded([pixels], "mjpeg")]

    def serve(peer: Peer, connection: socket.socket, _: int) -> None:
        request(connection)
        respond(connection, "200 OK", MULTIPART)
        for one in content:
            connection.sendall(one)
            peer.stopped.wait(pause_s)
        if then_silent:
            peer.stopped.wait()

    return serve


SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)


def rtsp(
    count: int | None, *, then_silent: bool = False, refuse: str | None = None, pause_s: float = 1 / RATE
) -> Callable[..., None]:
    """Return an RTSP server that sends H.264 interleaved in the connection.

    Args:
        count: number of pictures; None sends pictures without end.
        then_silent: send nothing after the pictures, instead of closing the connection.
        refuse: status of the response to DESCRIBE.
    """
    packets = encoded([picture(number) for number in range(20)], "libx264")

    def serve(peer: Peer, connection: socket.socket, _: int) -> None:
        while True:
            line, headers = request(connection)
            method, url = line.split()[:2]
            answer, body = {"CSeq": headers["cseq"], "Session": "1"}, ""
            status = "200 OK"
            if method == "DESCRIBE" and refuse is not None:
                status = refuse
                answer["WWW-Authenticate"] = 'Basic realm="camera"'
            elif method == "DESCRIBE":
                body = SDP
                answer |= {"Content-Type": "application/sdp", "Content-Base": url + "/"}
            elif method == "SETUP":
                answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
            answer["Content-Length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
            connection.sendall(f"RTSP/1.0 {status}\r\n{head}\r\n{body}".encode())
            if method == "PLAY":
                break
        number = 0
        while number != count and not peer.stopped.is_set():
            connection.sendall(rtp(packets[number % 20], number))
            number += 1
            peer.stopped.wait(pause_s)
        if then_silent:
            peer.stopped.wait()

    return serve


def rtp(packet: bytes, number: int) -> bytes:
    """Return a picture of H.264 as interleaved RTP packets, one for each of its units."""
    units = [unit.rstrip(b"\0") for unit in packet.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
    data = b""
    for place, unit in enumerate(units):
        last = 0x80 if place == len(units) - 1 else 0
        sequence = number * 8 + place
        head = struct.pack(">BBHII", 0x80, last | 96, sequence & 0xFFFF, 90000 + number * 90000 // RATE, 1)
        data += b"$\0" + struct.pack(">H", len(head) + len(unit)) + head + unit
    return data


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition is true; fail after the given time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
