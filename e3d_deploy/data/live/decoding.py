"""Decode the frames of cameras and network addresses with FFmpeg."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from e3d_deploy.data.live.address import LARGEST, MAX_PIXELS, Address
from e3d_deploy.data.live.source_problem import SourceProblem
from e3d_deploy.data.rate import MAX_RATE

if TYPE_CHECKING:
    import av

MAX_SIZE = "×".join(map(str, LARGEST))
"""Height and width of the largest picture, as text for messages."""
UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc")
"""FFmpeg demuxers that invent timestamps and frame rates, because their formats have none."""
MAX_DAMAGED = 250
"""Number of consecutive packets without a picture after which reading a live source fails."""
INDEX_FIRST = (
    "make its server support range requests, or move its index to the start with "
    "`ffmpeg -i VIDEO -c copy -movflags faststart NEW`"
)
"""Remedy for a file on a server whose index cannot be read, or whose index lists frames that are missing."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of an open source."""

    rate: float | None
    """Frames per second; None if the source does not state a rate."""
    has_times: bool
    """True if the source provides timestamps; a single frame may still lack a timestamp."""
    is_live: bool
    """True for a camera, RTSP, or a network address without a known duration and size."""
    aspect: Fraction | None
    """Width of a pixel divided by its height; None if the source does not state this ratio."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Frame of the decoder (`av.VideoFrame`), and its times."""

    frame: "av.VideoFrame"
    time_s: float | None
    """Timestamp from the clock of the source (s); None if the source provides no timestamp."""
    arrived_s: float
    """Value of `time.perf_counter()` when the frame was decoded (s)."""


def facts_of(container: Any, address: Address) -> tuple[Any, Facts]:
    """Return the video stream of an open source, configured for decoding, and its properties.

    Raises:
        SourceProblem: the source contains no video, its codec is unsupported, or its pictures are too large.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise SourceProblem("contains no video", "give the address of a video", is_final=True)
    codec = stream.codec_context
    if codec is None:
        raise SourceProblem("its codec is not supported", "make it send H.264 or MJPEG", is_final=True)
    if codec.width * codec.height > MAX_PIXELS:
        size = f"{codec.height}×{codec.width}"
        reason = f"has pictures of {size} pixels, expected at most {MAX_SIZE}"
        raise SourceProblem(reason, "lower its resolution", is_final=True)
    if not codec.width:
        raise _undecodable()
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    is_live = address.is_live or (container.duration is None and container.size <= 0)
    # `AUTO` decodes several frames in parallel, which delays the output by one frame per thread.
    stream.thread_type = "SLICE" if is_live else "AUTO"
    has_times = container.format.name not in UNTIMED
    return stream, Facts(
        rate=_rate(stream) if has_times else None,
        has_times=has_times,
        is_live=is_live,
        aspect=stream.sample_aspect_ratio,
    )


def _rate(stream: Any) -> float | None:
    rates = (rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= MAX_RATE)
    return next((float(rate) for rate in rates), None)


def decode(container: Any, stream: Any, facts: Facts, is_wanted: Callable[[], bool]) -> Iterator[Decoded]:
    """Yield the frames of a source. Damaged frames of a live source are skipped; a damaged frame of a file is an error.

    Args:
        is_wanted: called before each packet; decoding stops when it returns False.

    Raises:
        SourceProblem: the source is lost.
        SourceProblem: a file is damaged or ends early.
        SourceProblem: `MAX_DAMAGED` consecutive packets of a live source give no picture.
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
            time_s = frame.time if facts.has_times else None
            yield Decoded(frame=frame, time_s=time_s, arrived_s=time.perf_counter())
            number, damaged = number + 1, 0
        if reason is None and not facts.is_live:
            reason = failure
        if reason is not None and number == 0 and not facts.is_live:
            raise SourceProblem(f"none of its frames can be read ({reason})", INDEX_FIRST, is_final=True)
        # If a server sends no length, the regular end of a file cannot be told from a broken connection. So an error
        # after the last frame that the index lists counts as the regular end.
        is_whole = 0 < stream.frames <= number
        if reason is not None and not is_whole:
            raise _broken(number, stream, reason)
        if damaged == MAX_DAMAGED and facts.is_live:
            raise _undecodable()
    if not facts.is_live and number < stream.frames:
        raise _broken(number, stream, "its end is missing")


def _packets(container: Any, stream: Any) -> Iterator[tuple[Any, str | None]]:
    """Yield pairs of a packet and None. After an error, yield a last pair of None and the reason of the error.

    Decoding None flushes the decoder.
    """
    import av

    try:
        for packet in container.demux(stream):
            yield packet, None
    except (OSError, av.FFmpegError) as error:
        yield None, error.strerror


def _frames(stream: Any, packet: Any) -> tuple[list["av.VideoFrame"], str | None]:
    """Return the frames that a packet completes, and None; for a damaged packet, an empty list and the reason."""
    import av

    try:
        return stream.decode(packet), None
    except av.FFmpegError as error:
        return [], error.strerror


def _undecodable() -> SourceProblem:
    return SourceProblem(
        f"sends pictures that cannot be decoded, or that are larger than {MAX_SIZE} pixels",
        "check its codec, or lower its resolution",
        is_final=True,
    )


def _broken(number: int, stream: Any, reason: str | None) -> SourceProblem:
    total = f" of {stream.frames}" if stream.frames else ""
    return SourceProblem(f"broke off after {number}{total} frames ({reason})", "check the source and the network")
