"""Frames of cameras and network addresses, decoded by FFmpeg."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from e3d_deploy.data.live.address import LARGEST, MOST_PIXELS, Address
from e3d_deploy.data.live.source_problem import SourceProblem
from e3d_deploy.data.rate import MOST_RATE

if TYPE_CHECKING:
    import av

MOST = "×".join(map(str, LARGEST))
"""Height and width of the largest picture, in words."""
UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc")
"""Readers that make up times and rates, as their streams tell none."""
MOST_DAMAGED = 250
"""Packets in a row without a picture after which a live source is given up."""
INDEX_FIRST = (
    "let its server answer requests for a range of bytes, or put its index first with "
    "`ffmpeg -i VIDEO -c copy -movflags faststart NEW`"
)
"""Remedy for a file whose index cannot be reached, or that has other frames than its index tells."""


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


def facts_of(container: Any, address: Address) -> tuple[Any, Facts]:
    """Return the video stream of an open source, ready to be decoded, and its properties.

    Raises:
        SourceProblem: it holds no video that can be decoded, or too large pictures.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise SourceProblem("holds no video", "give another address", is_final=True)
    codec = stream.codec_context
    if codec is None:
        raise SourceProblem("no decoder for its codec", "let it send H.264 or MJPEG", is_final=True)
    if codec.width * codec.height > MOST_PIXELS:
        size = f"{codec.height}×{codec.width}"
        raise SourceProblem(f"has pictures of {size}, expected at most {MOST}", "make them smaller", is_final=True)
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
    """Yield the frames of a source. Damaged ones of a live source are passed over, those of a file end it.

    Args:
        is_wanted: asked before each packet; no more frames come once it returns False.

    Raises:
        SourceProblem: the source is lost, a file is damaged or ends early, or nothing of a live source can be decoded.
    """
    number, damaged = 0, 0
    for packet, reason in _packets(container, stream):
        if not is_wanted():
            return
        damaged += 1
        frames, failure = _frames(stream, packet)
        for frame in frames:
            if frame.is_corrupt and facts.is_live:
                continue
            if frame.is_corrupt:
                raise _broken(number, stream, "a damaged frame")
            time_s = frame.time if facts.tells_times else None
            yield Decoded(frame=frame, time_s=time_s, came_s=time.perf_counter())
            number, damaged = number + 1, 0
        if reason is None and not facts.is_live:
            reason = failure
        if reason is not None and number == 0 and not facts.is_live:
            raise SourceProblem(f"gave none of its frames ({reason})", INDEX_FIRST, is_final=True)
        # A server that tells no length closes the connection in the same way at the end as before it.
        is_whole = 0 < stream.frames <= number
        if reason is not None and not is_whole:
            raise _broken(number, stream, reason)
        if damaged == MOST_DAMAGED and facts.is_live:
            raise _undecodable()
    if not facts.is_live and number < stream.frames:
        raise _broken(number, stream, "its end is missing")


def _packets(container: Any, stream: Any) -> Iterator[tuple[Any, str | None]]:
    """Yield the packets of a stream; after an error, None, for the frames that the decoder holds, and the reason."""
    import av

    try:
        for packet in container.demux(stream):
            yield packet, None
    except (OSError, av.FFmpegError) as error:
        yield None, error.strerror


def _frames(stream: Any, packet: Any) -> tuple[list["av.VideoFrame"], str | None]:
    """Return the frames that a packet completes, or none and the reason where it is damaged or too large."""
    import av

    try:
        return stream.decode(packet), None
    except av.FFmpegError as error:
        return [], error.strerror


def _undecodable() -> SourceProblem:
    return SourceProblem(
        f"sends pictures that cannot be decoded, or that are larger than {MOST}",
        "check its codec, or make its pictures smaller",
        is_final=True,
    )


def _broken(number: int, stream: Any, reason: str | None) -> SourceProblem:
    total = f" of {stream.frames}" if stream.frames else ""
    return SourceProblem(f"broke off after {number}{total} frames ({reason})", "check the source and the network")
