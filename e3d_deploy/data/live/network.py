"""Cameras and network addresses, opened and decoded by FFmpeg."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from e3d_deploy.data.live.address import LARGEST, MOST_PIXELS, Address
from e3d_deploy.data.live.trouble import Trouble
from e3d_deploy.data.rate import MOST_RATE

if TYPE_CHECKING:
    import av

PROTOCOLS = "rtsp,rtp,udp,tcp,tls,http,https,crypto,httpproxy"
"""Protocols that a source may use, also by a redirect; `file` is not among them."""
FORMATS = {
    "rtsp": "rtsp",
    "http": "mov,matroska,avi,ogg,gif,ivf,yuv4mpegpipe,h264,hevc,mjpeg,mpjpeg,jpeg_pipe",
}
"""Readers that a source may use, by how it is opened. Playlists are not among them, as they name other addresses."""
MOST = "×".join(map(str, LARGEST))
"""Height and width of the largest picture, in words."""
UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc")
"""Readers that make up times and rates, as their streams tell none."""
LATER_S = 1.0
"""Time by which FFmpeg gives up later than its caller (s), so that the caller's error is the one that is seen."""
MOST_DAMAGED = 250
"""Packets in a row without a picture after which a live source is given up."""
INDEX_FIRST = (
    "let its server answer requests for a range of bytes, or put its index first with "
    "`ffmpeg -i VIDEO -c copy -movflags faststart NEW`"
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a source that is open."""

    rate: float | None
    """Frames per second; None where it tells none."""
    tells_times: bool
    """True if its frames have times of their own, though single ones may lack theirs."""
    is_live: bool
    """True if it has no end of its own."""
    aspect: Fraction | None
    """Width of a pixel by its height; None where it is not told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Frame of a source, as it was decoded."""

    frame: "av.VideoFrame"
    time_s: float | None
    """Time by the source's own clock (s); None where it tells none."""
    came_s: float
    """Value of `time.perf_counter()` when it was decoded."""


def open_container(address: Address, silence_s: float) -> Any:
    """Open a camera or a network address with PyAV.

    No camera was at hand: of V4L2, only the call below and its errors are tested. H.264 over RTSP comes one picture
    late, as FFmpeg's parser ends a picture where the next one begins. The certificates of rtsps:// and https:// are not
    checked, as cameras sign their own.

    Args:
        silence_s: longest time that FFmpeg may wait for the peer (s), a little later than its caller.

    Raises:
        Exception: FFmpeg's error, whose text may hold a password.
    """
    import av

    patience_s = silence_s + LATER_S
    options = {"max_pixels": str(MOST_PIXELS)}
    # A set of options, though an empty one, makes PyAV refuse readers that find their streams late, which would
    # ignore `max_pixels`. PyAV's annotation tells another type than its documentation.
    of_streams: Any = [{}]
    format_: str | None = None
    if address.kind == "camera":
        format_ = "v4l2"
    else:
        way = "rtsp" if address.is_live else "http"
        options |= {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS[way]}
        patience = str(round(patience_s * 1e6))
        if way == "rtsp":
            # UDP loses packets on busy networks and is often blocked.
            options |= {"rtsp_transport": "tcp", "timeout": patience, "allowed_media_types": "video"}
            # FFmpeg would wait for 20 frames to find the rate, which a slow camera takes seconds for.
            options |= {"fpsprobesize": "5"}
        else:
            options |= {"rw_timeout": patience}
    return av.open(
        address.text,
        format=format_,
        options=options,
        stream_options=of_streams,
        timeout=(patience_s, patience_s),
        metadata_errors="replace",
    )


def facts_of(container: Any, address: Address) -> tuple[Any, Facts]:
    """Return the video stream of an open source, ready to be decoded, and its properties.

    Raises:
        Trouble: it holds no video that can be decoded, or too large pictures.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise Trouble("holds no video", "give another address", is_final=True)
    codec = stream.codec_context
    if codec is None:
        raise Trouble("holds a video that no decoder is there for", "let it send H.264 or MJPEG", is_final=True)
    if codec.width * codec.height > MOST_PIXELS:
        size = f"{codec.height}×{codec.width}"
        raise Trouble(f"has pictures of {size}, expected at most {MOST}", "make them smaller", is_final=True)
    if not codec.width:
        raise _undecodable()
    codec.options = {"max_pixels": str(MOST_PIXELS)}
    is_live = address.is_live or (container.duration is None and container.size <= 0)
    # Threads by frames would hold back as many frames as there are threads.
    stream.thread_type = "SLICE" if is_live else "AUTO"
    tells_times = container.format.name not in UNTIMED
    return stream, Facts(
        rate=_rate(stream) if tells_times else None,
        tells_times=tells_times,
        is_live=is_live,
        aspect=stream.sample_aspect_ratio,
    )


def _rate(stream: Any) -> float | None:
    rates = (rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= MOST_RATE)
    return next((float(rate) for rate in rates), None)


def decode(container: Any, stream: Any, facts: Facts, is_wanted: Callable[[], bool]) -> Iterator[Decoded]:
    """Yield the frames of a source. A live one may be damaged now and then, a file may not.

    Args:
        is_wanted: asked before each packet; no more frames come once it returns False.

    Raises:
        Trouble: the source is lost, a file is damaged or ends early, or nothing of a live source can be decoded.
    """
    import av

    number, damaged = 0, 0
    try:
        for packet in container.demux(stream):
            if not is_wanted():
                return
            damaged += 1
            for frame in _frames(stream, packet, is_live=facts.is_live):
                if frame.is_corrupt and facts.is_live:
                    continue
                if frame.is_corrupt:
                    raise _broken(number, stream, "a damaged frame")
                time_s = frame.time if facts.tells_times else None
                yield Decoded(frame=frame, time_s=time_s, came_s=time.perf_counter())
                number, damaged = number + 1, 0
            if damaged == MOST_DAMAGED and facts.is_live:
                raise _undecodable()
    except (OSError, av.FFmpegError) as error:
        if number == 0 and not facts.is_live:
            raise Trouble(f"gave none of its frames ({error.strerror})", INDEX_FIRST, is_final=True) from None
        raise _broken(number, stream, error.strerror) from None
    if not facts.is_live and number < stream.frames:
        raise _broken(number, stream, "its end is missing")


def _frames(stream: Any, packet: Any, *, is_live: bool) -> list["av.VideoFrame"]:
    """Return the frames that a packet completes; none for a packet of a live source that is damaged."""
    import av

    try:
        frames: list[av.VideoFrame] = stream.decode(packet)
    except av.InvalidDataError:
        if not is_live:
            raise
        return []
    return frames


def _undecodable() -> Trouble:
    return Trouble(
        f"sends pictures that cannot be decoded, or that are larger than {MOST}",
        "check its codec, or make its pictures smaller",
        is_final=True,
    )


def _broken(number: int, stream: Any, reason: str | None) -> Trouble:
    total = f" of {stream.frames}" if stream.frames else ""
    return Trouble(f"broke off after {number}{total} frames ({reason})", "check the source and the network")
