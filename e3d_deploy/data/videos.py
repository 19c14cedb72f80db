"""Decode videos picture by picture. Needs no PyTorch; imports PyAV when a video is opened."""

import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.container_end import joined, missing_end
from e3d_deploy.data.display import FrameConverter
from e3d_deploy.data.form import MAX_PIXELS, Form
from e3d_deploy.data.gif import source_of
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.data.rate import MAX_RATE, TOLERANCE, select_by_time
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ClipError, SourceLost

if TYPE_CHECKING:
    import av

CHECKED = 1000
"""Maximum number of frames decoded after the requested ones, to check that the video is complete."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that keep the alpha channel of WebM; the key is FFmpeg's own decoder, which drops the channel."""
OPTIONS = {"mjpeg": {"err_detect": "explode"}, "h264": {"strict": "strict"}}
"""Options of decoders.

`explode` stops at damage that would be concealed silently. `strict` makes the decoder wait for reordered frames, for
H.264 streams that do not state how far frames are reordered.
"""
BOUND = {"max_pixels": str(MAX_PIXELS)}
"""Decoder option that refuses larger frames before memory is allocated, even if the size changes in mid-stream."""
COUNTED = {"av1": 0, "h264": 3, "hevc": 3, "mpeg2video": 3, "vvc": 3}
"""Codecs whose decoders drop frames silently, with the maximum number of missing frames that is tolerated.

Each packet of these codecs holds a frame or a field. Streams of these codecs, except AV1, may state that frames are
shown later or never, which explains a few missing frames.
"""
BEGIN_WHOLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that begin with a key frame; files in other containers may begin in mid-stream."""
AVIF = ("avif", "avis")
"""Brands of animated AVIF files, whose transparency and tiles are separate streams."""
PLAYLISTS = (b"#EXTM3U", b"ffconcat")
"""First bytes of text files that list videos, in the formats of HLS and of FFmpeg."""
LOST_INTERVALS = 3
"""Tolerance if a video ends before the end in its header: in longest frame intervals (Matroska), in frames (AVI)."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A video that is being decoded."""

    pictures: Iterator[NDArray[np.uint8]]
    """Pictures [H, W, C]."""
    rate: float | None
    """Frame rate (frames per second); None if the video states none."""
    rest: Iterator["av.VideoFrame"]
    """Decoded frames that are not yet converted to pictures; `pictures` consumes the same frames."""
    time_s: Callable[[], float | None]
    """Returns the time of the last decoded frame (s); None if the video has no times."""


def play_video(path: Path, form: Form, *, remarks: Remarks, resample: float | None = None) -> "Played":
    """Decode a video picture by picture, as players show it.

    Args:
        path: the video.
        form: size, colours and fit of the model's frames.
        remarks: collects remarks on conversions.
        resample: select the frame nearest to each tick of this rate, by the times of the frames (ticks per second).

    Raises:
        ClipError: the file has no video, or cannot be read.
        BackendUnavailable: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    try:
        source = source_of(path)
        # Allow no protocol, so that playlists and the like cannot open other files or addresses.
        options = {"protocol_whitelist": "none", **BOUND}
        container = av.open(Single(path) if isinstance(source, str) else source, options=options)
    except (OSError, av.FFmpegError) as error:
        raise unreadable(path, _kind(path) or _reason(error)) from error
    # FFmpeg would show any text as a film of a terminal (format "tty").
    stream = None if container.format.name == "tty" else _shown_stream(path, container, remarks)
    if stream is None:
        container.close()
        end = missing_end(path)
        raise ClipError(f"{path}: holds no video{f' ({end}); copy or export it again' if end else ''}")
    if joined(path):
        container.close()
        raise ClipError(f"{path}: holds two files one after the other; join them with a video tool")
    if stream.codec_context is None:
        container.close()
        raise unreadable(path, "no decoder for it")
    height, width = _shape(stream)
    if height * width > MAX_PIXELS:
        container.close()
        raise ClipError(f"{path}: has frames of {height}×{width}, expected at most {MAX_PIXELS:,} pixels; scale it")
    interval = 1 / rate if (rate := _rate(stream)) else None
    # AVI stores no times; FFmpeg reports the times of decoding instead.
    tells_times = container.format.name != "avi"
    times, tick = Times(), stream.time_base
    decoded = _decoded(path, container, stream, times)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        frames = decoded
        convert = FrameConverter(path.name, form, aspect=stream.sample_aspect_ratio, remarks=remarks)
        with container:
            if resample is not None:
                timed = _timed(frames, interval, tells_times=tells_times)
                frames = select_by_time(timed, resample, interval=interval)
            try:
                yield from map(convert, frames)
            finally:
                if resample is None and tells_times and tick:
                    times.say(path.name, tick, remarks)

    return Played(
        pictures=pictures(),
        rate=None if interval is None else float(1 / interval),
        rest=decoded,
        time_s=lambda: times.last_s(tick) if tells_times else None,
    )


class Single:
    """A file that FFmpeg reads through Python, so that FFmpeg opens no files itself; closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)  # FFmpeg chooses the demuxer of some formats by name
        self.file = path.open("rb", buffering=0)
        self.read, self.seek, self.tell, self.seekable = (
            self.file.read, self.file.seek, self.file.tell, self.file.seekable
        )  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def _kind(path: Path) -> str | None:
    """Describe a file that FFmpeg cannot open, if the cause is clearer than FFmpeg's error; otherwise return None."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begin = file.read(16)
    return "a list of other files, which are not opened" if begin.startswith(PLAYLISTS) else None if begin else "empty"


def _shown_stream(path: Path, container: Any, remarks: Remarks) -> Any:
    """Return the video stream that players show, and remark if there are several; None if there is only a cover.

    Raises:
        ClipError: the file is an AVIF with several streams.
    """
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    streams = [stream for stream in streams if stream.frames != 1] or streams  # without the still of an animated AVIF
    if not streams:
        return None
    if len(streams) > 1 and container.metadata.get("major_brand") in AVIF:
        raise ClipError(
            f"{path}: is an AVIF with transparency or tiles, which are not supported; convert it to animated PNG"
        )

    def rank(stream: Any) -> tuple[bool, int]:
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        height, width = _shape(stream)
        return is_default, height * width

    taken = max(streams, key=rank)
    if len(streams) > 1:
        remarks.say("streams", "%s: has %d video streams; number %d of %d×%d is read, the default or largest",
                    path.name, len(streams), streams.index(taken) + 1, *_shape(taken))  # fmt: skip
    return taken


def _rate(stream: Any) -> Fraction | None:
    """Return the frame rate that a stream states (frames per second); None if it states none.

    If the demuxer does not count frames, as for raw DV, the average rate is the rate of the clock, and is not used.
    """
    average: Fraction | None = stream.average_rate
    if average is None or average <= MAX_RATE:
        return average
    guessed: Fraction | None = stream.guessed_rate
    return guessed


def _shape(stream: Any) -> tuple[int, int]:
    codec = stream.codec_context
    return (0, 0) if codec is None else (codec.height, codec.width)


def _reason(error: "OSError | av.FFmpegError") -> str | None:
    """Describe an FFmpeg error; damage and frames above `BOUND` have the same error code."""
    return f"damaged, or frames above {MAX_PIXELS:,} pixels" if error.errno == errno.EINVAL else error.strerror


def unreadable(path: Path, reason: str | None) -> ClipError:
    """Return the error for a file that is not a readable video."""
    end = missing_end(path)
    end = None if end == reason else end
    # The index of an MP4 can only be read from a file, not from a pipe.
    remedy = "send Matroska or MPEG-TS through a pipe" if path.is_fifo() else "check the file"
    return ClipError(f"{path}: not a video that can be read ({reason}{f'; {end}' if end else ''}); {remedy}")


def check_rest(path: Path, frames: Iterator[object]) -> None:
    """Check that a video is complete after the requested frames.

    The next `CHECKED` frames are decoded, and the headers after them are checked. Checksums are not checked, because
    this would read the whole file, which may be much larger than the requested frames.

    Args:
        path: the video.
        frames: remaining frames of the video.

    Raises:
        SourceLost: the video is damaged after the requested frames, or its end is missing.
    """
    if not path.is_file():
        return
    deque(islice(frames, CHECKED), maxlen=0)
    if end := missing_end(path, checksums=False):
        raise SourceLost(f"{path}: breaks off, {end}; copy or export it again")


class Times:
    """Records the shortest and longest interval between frames (ticks of the stream's clock)."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.shortest, self.longest = 0, 0

    def add(self, pts: int | None) -> None:
        """Record the time of the next frame."""
        if pts is None:
            return
        if self.last is not None and (interval := pts - self.last) > 0:
            self.longest = max(self.longest, interval)
            self.shortest = min(self.shortest or interval, interval)
        self.last = pts

    def last_s(self, tick: Fraction | None) -> float | None:
        """Return the time of the last frame (s); None before the first frame, or if the stream has no clock."""
        return None if self.last is None or not tick else float(self.last * tick)

    def say(self, name: str, tick: Fraction, remarks: Remarks) -> None:
        """Remark on intervals that differ by more than rounding to ticks explains."""
        apart = self.longest - self.shortest
        if apart > 1 and apart > TOLERANCE * self.longest:
            shortest_ms, longest_ms = float(1000 * self.shortest * tick), float(1000 * self.longest * tick)
            remarks.say("times", "%s: frame times vary from %.4g to %.4g ms; `ffmpeg -i VIDEO -r N NEW` makes "
                        "them even, as does --resample N of predict, stream and evaluate",
                        name, shortest_ms, longest_ms)  # fmt: skip

    def missing(self, container: Any, stream: Any) -> str | None:
        """Describe how a Matroska file shows that frames are missing at its end; None if it shows none."""
        stated_s = _stated_seconds(container, stream)
        if stated_s is None or self.last is None or not self.longest:
            return None
        last_s, longest_s = float(self.last * stream.time_base), float(self.longest * stream.time_base)
        if stated_s - last_s <= LOST_INTERVALS * longest_s:
            return None
        return f"the last frame is at {last_s:.4g} s of {stated_s:.4g}"


def _stated_seconds(container: Any, stream: Any) -> float | None:
    """Return the length that a Matroska header states (s); None for other containers, whose demuxers estimate it."""
    if container.format.name != "matroska,webm":
        return None
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        alone = len(container.streams) == 1 and container.duration
        return container.duration / 1e6 if alone else None


class Awaited:
    """Counts the packets for which the decoder has not returned a frame.

    These packets are not counted:

    - packets that an edit list hides;
    - packets before the first frame of a file that begins in mid-stream;
    - packets that follow a key frame but are shown before it, because they cannot be decoded if the film was cut at the
      key frame.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        codec = stream.codec_context.codec.canonical_name
        self.counts = codec in COUNTED and container.format.name != "avi"
        self.slack = COUNTED.get(codec, 0)
        self.may_begin_later = container.format.name not in BEGIN_WHOLE
        self.packets = self.frames = 0
        self.key: int | None = None
        self.times: set[int] = set()

    def sent(self, packet: Any) -> None:
        """Record a packet that is sent to the decoder."""
        if packet.is_keyframe:
            self.may_begin_later |= self.packets == 0
            self.key = packet.pts
        if packet.is_discard:
            return
        self.packets += 1
        if packet.pts is not None and (self.key is None or packet.pts >= self.key):
            self.times.add(packet.pts)

    def received(self, frame: "av.VideoFrame") -> None:
        """Record a frame that the decoder returned."""
        if frame.pts is None:
            self.counts = False
            return
        if self.frames == 0 and self.may_begin_later:
            self.times = {time for time in self.times if time >= frame.pts}
        self.frames += 2 if frame.interlaced_frame else 1  # each field may have been a packet
        self.times.discard(frame.pts)

    @property
    def lost(self) -> int:
        """Number of missing frames, the smaller of the counts by number and by time; 0 within the tolerance."""
        lost = min(self.packets - self.frames, len(self.times))
        return lost if self.counts and lost > self.slack else 0


def _decoded(path: Path, container: Any, stream: Any, times: Times) -> Iterator["av.VideoFrame"]:
    """Yield the undamaged frames of a video up to its end.

    FFmpeg would silently conceal or skip much of the damage.

    Raises:
        ClipError: no frame can be decoded.
        SourceLost: the video is damaged after some frames, or its end is missing.
    """
    import av

    number, awaited = 0, Awaited(container, stream)
    try:
        for frame in _undamaged_frames(path, container, stream, awaited):
            times.add(frame.pts)
            yield frame
            number += 1
        reason = missing_end(path) or times.missing(container, stream)
    except (OSError, av.FFmpegError, _Damage) as error:
        reason = missing_end(path) or (str(error) if isinstance(error, _Damage) else _reason(error))
    lost = awaited.lost if reason is None else 0
    if reason is None and not lost:
        return
    if number == 0:
        raise unreadable(path, reason or "none of its frames can be decoded")
    if lost:
        raise SourceLost(f"{path}: gives {number} of {number + lost} frames, the others are damaged or depend on "
                         "missing frames; copy or export it again")  # fmt: skip
    stated_s = _stated_seconds(container, stream)
    about = round(stated_s * rate) if stated_s and (rate := _rate(stream)) else 0
    total = f" of {stream.frames}" if stream.frames else f" of about {about}" if about > number else ""
    raise SourceLost(f"{path}: broke off after {number}{total} frames ({reason}); copy or export it again")


class _Damage(Exception):
    """Damage that a decoder or demuxer reported without stopping."""


def _undamaged_frames(path: Path, container: Any, stream: Any, awaited: Awaited) -> Iterator["av.VideoFrame"]:
    """Yield frames until a packet or frame is marked as damaged.

    Raises:
        _Damage: a packet or frame is damaged, or the demuxer has skipped frames.
    """
    decode, count, end, last = _decoder(stream), 0, 0, 0
    indexed = sum(entry.size > 0 for entry in stream.index_entries)  # counted now: demuxers add entries while they read
    for packet in container.demux(stream):
        if packet.size and packet.is_corrupt:
            break
        if packet.size and packet.pos is not None:
            count, end, last = count + 1, packet.pos + packet.size, max(last, (packet.dts or 0) + 1)
        if packet.size:
            awaited.sent(packet)
        for frame in decode(packet):
            if frame.is_corrupt:
                raise _Damage("a damaged frame")
            awaited.received(frame)
            yield frame
    else:
        # Two demuxers drop frames silently. The demuxer of Y4M drops an incomplete last frame. The demuxer of AVI drops
        # chunks that are not at their place in the index.
        if container.format.name == "yuv4mpegpipe" and path.is_file() and end < path.stat().st_size:
            raise _Damage("the last frame is cut")
        if container.format.name == "avi":
            if count < indexed:
                raise _Damage("frames of its index are missing")
            # The header also counts empty chunks, for dropped frames; a complete index lists only the other chunks.
            if count > indexed and max(count, last) < stream.frames - LOST_INTERVALS:
                raise _Damage("its header declares more frames")
        return
    for frame in decode(None):  # frames still in the decoder precede the damage
        if frame.is_corrupt:
            break
        yield frame
    raise _Damage("damaged data")


def _decoder(stream: Any) -> Callable[[Any], list["av.VideoFrame"]]:
    """Return a function that decodes the packets of a stream, with a decoder that keeps its alpha channel."""
    import av

    name = stream.codec_context.name
    tags = {tag.lower(): value for tag, value in stream.metadata.items()}  # some writers spell it ALPHA_MODE
    if tags.get("alpha_mode") == "1" and name in ALPHA_DECODERS:
        decoder: Any = av.CodecContext.create(ALPHA_DECODERS[name], "r")
        decoder.options = BOUND
    else:
        decoder = stream
        stream.thread_type = "AUTO"
        stream.codec_context.options = OPTIONS.get(name, {}) | BOUND
    decode: Callable[[Any], list[av.VideoFrame]] = decoder.decode
    return decode


def _timed(
    frames: Iterator["av.VideoFrame"], interval: Fraction | None, *, tells_times: bool
) -> Iterator[tuple[Fraction, "av.VideoFrame"]]:
    """Yield frames with their times (s); a frame without a time is one interval after the preceding frame."""
    time = Fraction(0)
    for frame in frames:
        if tells_times and frame.pts is not None and frame.time_base is not None:
            time = frame.pts * frame.time_base
        yield time, frame
        time += interval or 0
