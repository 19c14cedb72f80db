"""Send a video to a peer over the network, picture by picture."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.live.address import has_host, public
from e3d_deploy.data.live.bounded_queue import BoundedQueue
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.data.write import exact_rate, video_frame
from e3d_deploy.errors import BackendUnavailable, ConfigError, E3DError, SourceLost
from e3d_deploy.frames import to_pictures
from e3d_deploy.live.observation import Observation, side_by_side
from e3d_deploy.live.sinks import Put
from e3d_deploy.progress import Notify, silent

FORMATS = {"rtsp": "rtsp", "rtsps": "rtsp", "rtmp": "flv", "rtmps": "flv", "udp": "mpegts", "tcp": "mpegts"}
"""Container formats by URL scheme."""
CONNECT_S = 10.0
"""Maximum time for a peer to accept the video, and maximum time that a peer may stall (s)."""
CLOSE_S = 2.0
"""Maximum time to send the queued pictures at the end (s)."""
QUEUE = 8
"""Maximum number of pictures queued for a slow peer; if the queue is full, the oldest picture is dropped."""
KEY_INTERVAL_S = 2.0
"""Time between two key frames (s). A new viewer of the video waits at most this long for a picture."""
CLOCK = 90_000
"""Ticks of the time base per second, as in RTP."""


def check_push(url: str) -> None:
    """Check the form of a --push address, without connecting to it.

    Raises:
        ConfigError: the scheme is not supported, the host is missing, or the port of `tcp://` or `udp://` is missing.
    """
    parts = urlsplit(url) if has_host(url) else None
    if parts is None or parts.scheme not in FORMATS:
        expected = ", ".join(f"{scheme}://" for scheme in FORMATS)
        raise ConfigError(f"--push: got {shown(url)}, expected an address such as rtsp://host/path ({expected})")
    if parts.scheme in ("tcp", "udp") and parts.port is None:
        raise ConfigError(f"--push: got {shown(url)}, expected {parts.scheme}://HOST:PORT; add the port")


def shown(url: str) -> str:
    """Return an address for messages, without user, password, query and path, which in RTMP is a secret stream key."""
    return public(url, with_path=False)


class Push:
    """Sends each picture beside the forecast of it to a peer, as H.264 video, in a thread of its own.

    A lost or slow peer never blocks `put`: pictures that cannot be sent are dropped and counted.

    Args:
        url: address that `check_push` accepts.
        size: height and width of the frames before `zoom` (pixels).
        frames_per_second: nominal frame rate of the video; the timestamps of pictures are their times of arrival.
        zoom: whole factor by which pictures are enlarged.
        remark: called once with a sentence if the peer is lost.

    Raises:
        SourceLost: the peer does not accept the video.
        BackendUnavailable: PyAV is not installed.
    """

    def __init__(
        self, url: str, size: tuple[int, int], *, frames_per_second: float, zoom: int = 1, remark: Notify = silent
    ) -> None:
        self.name, self.sent, self._received = shown(url), 0, 0
        self.lost: E3DError | None = None
        self._size, self._rate, self._zoom, self._remark = size, frames_per_second, zoom, remark
        self._waiting: BoundedQueue[tuple[float, NDArray[np.uint8]]] = BoundedQueue(QUEUE, drop_oldest=True)
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[url], name=f"push to {self.name}", daemon=True)
        self._thread.start()
        if not self._connected.wait(CONNECT_S):
            self._lose(f"did not accept the video within {CONNECT_S:g} s")
        if self.lost is not None:
            raise self.lost

    def put(self, observation: Observation) -> None:
        """Queue a picture for sending; if the queue is full, its oldest picture is dropped."""
        self._received += 1
        if self.lost is not None:
            return
        picture = to_pictures(side_by_side(observation.followed)).repeat(self._zoom, axis=0).repeat(self._zoom, axis=1)
        self._waiting.put((time.monotonic(), picture))

    @property
    def not_sent(self) -> int:
        """Number of pictures that were dropped or that still wait in the queue."""
        return self._received - self.sent

    def close(self) -> None:
        """Send the queued pictures, for at most `CLOSE_S`, and end the video. Later calls do nothing."""
        if not self._thread.is_alive():
            return
        self._waiting.finish()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive() and self.lost is None:
            self._lose("does not receive the video")

    def _lose(self, reason: str) -> None:
        self.lost = SourceLost(f"push to {self.name}: the peer {reason}; check that it runs and accepts H.264")

    def _run(self, url: str) -> None:
        began_s = time.monotonic()
        try:
            self._send(url)
        except BackendUnavailable as error:
            self.lost = error
        except Exception as error:
            if not self._connected.is_set() and time.monotonic() - began_s >= CONNECT_S:
                self._lose(f"did not accept the video within {CONNECT_S:g} s")
            elif self.lost is None:
                was = "was lost" if self._connected.is_set() else "does not accept the video"
                self._lose(f"{was} ({getattr(error, 'strerror', None) or type(error).__name__})")
                if self._connected.is_set():
                    self._remark(f"push to {self.name}: the peer was lost; streaming continues without it")
        finally:
            self._connected.set()

    def _send(self, url: str) -> None:
        try:
            import av
        except ImportError as error:
            raise BackendUnavailable(NEEDS_VIDEO) from error
        scheme, (height, width) = urlsplit(url).scheme, self._size
        address, options = _with_timeout(scheme + url[len(scheme) :])  # FFmpeg accepts only lower-case schemes
        with av.open(address, "w", format=FORMATS[scheme], options=options) as container:
            stream = container.add_stream("libx264", rate=exact_rate(self._rate))
            # Browsers and phones play only videos with an even width and height.
            stream.height, stream.width = (side * self._zoom + side * self._zoom % 2 for side in (height, width))
            stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, CLOCK)
            stream.codec_context.time_base = stream.time_base
            stream.codec_context.gop_size = max(1, round(KEY_INTERVAL_S * self._rate))
            stream.options = {"preset": "veryfast", "tune": "zerolatency"}
            container.start_encoding()
            self._connected.set()
            started, last = None, -1
            for arrived_s, picture in self._waiting:
                started = arrived_s if started is None else started
                last = max(last + 1, round((arrived_s - started) * CLOCK))
                frame = video_frame(picture)
                frame.pts, frame.time_base = last, stream.time_base
                container.mux(stream.encode(frame))
                self.sent += 1
            container.mux(stream.encode())


def _with_timeout(url: str) -> tuple[str, dict[str, str]]:
    """Return an address and options that make FFmpeg give up on a silent peer after `CONNECT_S`.

    PyAV blocks all threads of Python while it opens or closes a connection, so a silent peer would block the program.
    FFmpeg has no such option for RTMP.
    """
    scheme, patience = urlsplit(url).scheme, str(round(CONNECT_S * 1e6))  # µs
    if scheme.startswith("rtsp"):
        return url, {"rtsp_transport": "tcp", "timeout": patience}
    if scheme == "tcp":
        return f"{url}{'&' if '?' in url else '?'}timeout={patience}", {}
    return url, {}


@contextmanager
def pushing(push: Push) -> Iterator[Put]:
    """Yield the function that queues a picture for a peer, and end the video when the block ends."""
    try:
        yield push.put
    finally:
        push.close()
