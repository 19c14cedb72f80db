"""Videos, decoded picture by picture. Needs no PyTorch; PyAV when one is opened."""

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
from e3d_deploy.data.display import Bringer
from e3d_deploy.data.form import MOST_PIXELS, Form
from e3d_deploy.data.gif import source_of
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.data.rate import MOST_RATE, TOLERANCE, select_by_time
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ClipError, SourceLost

if TYPE_CHECKING:
    import av

CHECKED = 1000
"""Frames behind those that are asked for that are decoded to see that the video is whole."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that keep the alpha of WebM, by the name of FFmpeg's own, which drop it."""
OPTIONS = {"mjpeg": {"err_detect": "explode"}, "h264": {"strict": "strict"}}
"""Options of decoders: to stop at damage that they would repair unmarked, and to wait for frames that come late.

The latter concerns H.264 that does not tell by how much frames are reordered.
"""
BOUND = {"max_pixels": str(MOST_PIXELS)}
"""Option of decoders to refuse larger frames before they take memory, also where the size changes in mid-stream."""
COUNTED = {"av1": 0, "h264": 3, "hevc": 3, "mpeg2video": 3, "vvc": 3}
"""Codecs whose decoders pass over frames without a word, and how many of them are not missed.

Each of their packets holds a frame or a field. All but AV1 can tell a decoder to show frames later or never.
"""
BEGIN_WHOLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that begin with a key frame; others may hold a stream that was joined midway."""
AVIF = ("avif", "avis")
"""Kinds of MP4 that are pictures, whose transparency and tiles are streams of their own."""
PLAYLISTS = (b"#EXTM3U", b"ffconcat")
"""Begins of texts that name videos: of HLS, and of FFmpeg's own kind."""
LOST_INTERVALS = 3
"""Longest intervals by which a video may end before its header says; frames, of AVI."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A video that plays."""

    pictures: Iterator[NDArray[np.uint8]]
    """[H, W, C]."""
    rate: float | None
    """Frames per second; None where the video tells none."""
    rest: Iterator["av.VideoFrame"]
    """Decoded frames that no picture was made of yet; they end with the pictures."""
    time_s: Callable[[], float | None]
    """Returns the time of the frame that was decoded last (s); None where the video tells none."""


def play_video(path: Path, form: Form, *, remarks: Remarks, resample: float | None = None) -> "Played":
    """Play a video picture by picture, as players show it.

    Args:
        remarks: takes what is done to the pictures, once each.
        resample: take the frame nearest in time to each tick of so many a second, by the frames' own times.

    Raises:
        ClipError: it holds no video, or cannot be read.
        BackendUnavailable: without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    try:
        source = source_of(path)
        # No protocol is allowed: playlists and the like cannot open other files or addresses.
        options = {"protocol_whitelist": "none", **BOUND}
        container = av.open(Single(path) if isinstance(source, str) else source, options=options)
    except (OSError, av.FFmpegError) as error:
        raise unreadable(path, _kind(path) or _reason(error)) from error
    # FFmpeg shows any text as a film of a terminal ("tty").
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
    if height * width > MOST_PIXELS:
        container.close()
        raise ClipError(f"{path}: has frames of {height}×{width}, expected at most {MOST_PIXELS:,} pixels; scale it")
    interval = 1 / rate if (rate := _rate(stream)) else None
    # AVI tells no times; FFmpeg gives those of decoding.
    tells_times = container.format.name != "avi"
    times, tick = Times(), stream.time_base
    decoded = _decoded(path, container, stream, times)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        frames = decoded
        bring = Bringer(path.name, form, aspect=stream.sample_aspect_ratio, remarks=remarks)
        with container:
            if resample is not None:
                timed = _timed(frames, interval, tells_times=tells_times)
                frames = select_by_time(timed, resample, interval=interval)
            try:
                yield from map(bring, frames)
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
    """A file that FFmpeg reads through Python, and so opens no file itself. It is closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)  # the reader of some formats is chosen by it
        self.file = path.open("rb", buffering=0)
        self.read, self.seek, self.tell, self.seekable = (
            self.file.read, self.file.seek, self.file.tell, self.file.seekable
        )  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def _kind(path: Path) -> str | None:
    """Return the kind of a file that FFmpeg cannot open, if its error says nothing of it."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begin = file.read(16)
    return "a list of other files, which are not opened" if begin.startswith(PLAYLISTS) else None if begin else "empty"


def _shown_stream(path: Path, container: Any, remarks: Remarks) -> Any:
    """Return the video stream that players show, and log if there are several; None if there is only a cover.

    Raises:
        ClipError: it is an AVIF of several streams.
    """
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    streams = [stream for stream in streams if stream.frames != 1] or streams  # without the picture before an AVIF
    if not streams:
        return None
    if len(streams) > 1 and container.metadata.get("major_brand") in AVIF:
        raise ClipError(f"{path}: an AVIF with transparency or tiles, which are not read; convert it to animated PNG")

    def rank(stream: Any) -> tuple[bool, int]:
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        height, width = _shape(stream)
        return is_default, height * width

    taken = max(streams, key=rank)
    if len(streams) > 1:
        remarks.say("streams", "%s: has %d video streams; number %d of %d×%d is taken, the default or largest",
                    path.name, len(streams), streams.index(taken) + 1, *_shape(taken))  # fmt: skip
    return taken


def _rate(stream: Any) -> Fraction | None:
    """Return the frames per second that a stream tells; None without any.

    The average is that of the clock where the reader counts no frames, as that of raw DV.
    """
    average: Fraction | None = stream.average_rate
    if average is None or average <= MOST_RATE:
        return average
    guessed: Fraction | None = stream.guessed_rate
    return guessed


def _shape(stream: Any) -> tuple[int, int]:
    codec = stream.codec_context
    return (0, 0) if codec is None else (codec.height, codec.width)


def _reason(error: "OSError | av.FFmpegError") -> str | None:
    """Return the words for an error of FFmpeg, which has one for damage and for a frame beyond `BOUND`."""
    return f"damaged, or frames above {MOST_PIXELS:,} pixels" if error.errno == errno.EINVAL else error.strerror


def unreadable(path: Path, reason: str | None) -> ClipError:
    """Return the error of a file that is no video."""
    end = missing_end(path)
    end = None if end == reason else end
    # An index of MP4 can be read from a file alone.
    remedy = "send Matroska or MPEG-TS through a pipe" if path.is_fifo() else "check the file"
    return ClipError(f"{path}: not a video that can be read ({reason}{f'; {end}' if end else ''}); {remedy}")


def check_rest(path: Path, frames: Iterator[object]) -> None:
    """Check that a video is whole beyond the frames that were asked for.

    The next `CHECKED` frames are decoded, and the headers behind them are checked. Checksums are not, as they take
    reading all of a file that may be much larger than what was asked for.

    Raises:
        SourceLost: the video is damaged there, or its end is missing.
    """
    if not path.is_file():
        return
    deque(islice(frames, CHECKED), maxlen=0)
    if end := missing_end(path, checksums=False):
        raise SourceLost(f"{path}: breaks off, {end}; copy or export it again")


class Times:
    """Keeps the intervals between frames (ticks of the stream's clock)."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.shortest, self.longest = 0, 0

    def add(self, pts: int | None) -> None:
        """Note the time of the next frame."""
        if pts is None:
            return
        if self.last is not None and (interval := pts - self.last) > 0:
            self.longest = max(self.longest, interval)
            self.shortest = min(self.shortest or interval, interval)
        self.last = pts

    def last_s(self, tick: Fraction | None) -> float | None:
        """Return the time of the last frame (s); None if it is not known."""
        return None if self.last is None or not tick else float(self.last * tick)

    def say(self, name: str, tick: Fraction, remarks: Remarks) -> None:
        """Log intervals that differ by more than rounding to ticks makes them differ."""
        apart = self.longest - self.shortest
        if apart > 1 and apart > TOLERANCE * self.longest:
            shortest_ms, longest_ms = float(1000 * self.shortest * tick), float(1000 * self.longest * tick)
            remarks.say("times", "%s: frame times vary from %.4g to %.4g ms; `ffmpeg -i VIDEO -r N NEW` makes "
                        "them even, as does --resample N of predict, stream and evaluate",
                        name, shortest_ms, longest_ms)  # fmt: skip

    def missing(self, container: Any, stream: Any) -> str | None:
        """Return the sign by which a Matroska file lacks frames at its end; None without one."""
        told_s = _told_seconds(container, stream)
        if told_s is None or self.last is None or not self.longest:
            return None
        last_s, longest_s = float(self.last * stream.time_base), float(self.longest * stream.time_base)
        if told_s - last_s <= LOST_INTERVALS * longest_s:
            return None
        return f"the last one at {last_s:.4g} s of {told_s:.4g}"


def _told_seconds(container: Any, stream: Any) -> float | None:
    """Return the length of a video as Matroska's header tells it (seconds); other readers estimate it."""
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
    """Packets of which no frame has come yet.

    Not counted are those that an edit list hides, those before the first frame of a stream that was joined midway, and
    those that follow a key frame but are shown before it: where a film is cut there, nothing can be made of them.
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
        """Note a packet that the decoder takes."""
        if packet.is_keyframe:
            self.may_begin_later |= self.packets == 0
            self.key = packet.pts
        if packet.is_discard:
            return
        self.packets += 1
        if packet.pts is not None and (self.key is None or packet.pts >= self.key):
            self.times.add(packet.pts)

    def came(self, frame: "av.VideoFrame") -> None:
        """Note a frame that has come."""
        if frame.pts is None:
            self.counts = False
            return
        if self.frames == 0 and self.may_begin_later:
            self.times = {time for time in self.times if time >= frame.pts}
        self.frames += 2 if frame.interlaced_frame else 1  # fields may be packets of their own
        self.times.discard(frame.pts)

    @property
    def lost(self) -> int:
        """Frames that have not come, both by their number and by their times; 0 if they are too few to tell."""
        lost = min(self.packets - self.frames, len(self.times))
        return lost if self.counts and lost > self.slack else 0


def _decoded(path: Path, container: Any, stream: Any, times: Times) -> Iterator["av.VideoFrame"]:
    """Yield the good frames of a video up to its end.

    Raises:
        ClipError: none is good.
        SourceLost: it is damaged after good ones, or ends early. FFmpeg would repair or pass over much of it.
    """
    import av

    number, awaited = 0, Awaited(container, stream)
    try:
        for frame in _whole_frames(path, container, stream, awaited):
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
        raise SourceLost(f"{path}: gives {number} of {number + lost} frames, the others are damaged or lack frames "
                         "that they are made from; copy or export it again")  # fmt: skip
    told_s = _told_seconds(container, stream)
    about = round(told_s * rate) if told_s and (rate := _rate(stream)) else 0
    total = f" of {stream.frames}" if stream.frames else f" of about {about}" if about > number else ""
    raise SourceLost(f"{path}: broke off after {number}{total} frames ({reason}); copy or export it again")


class _Damage(Exception):
    """Damage that a decoder or reader marked and went on."""


def _whole_frames(path: Path, container: Any, stream: Any, awaited: Awaited) -> Iterator["av.VideoFrame"]:
    """Yield frames until a packet or frame is marked as damaged.

    Raises:
        _Damage: one is, or the reader has passed over some.
    """
    decode, count, end, last = _decoder(stream), 0, 0, 0
    indexed = sum(entry.size > 0 for entry in stream.index_entries)  # readers add what they find
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
            awaited.came(frame)
            yield frame
    else:
        # Two readers pass over frames without a word: that of Y4M over a last one that is cut, that of AVI over
        # chunks that are not where its index has them.
        if container.format.name == "yuv4mpegpipe" and path.is_file() and end < path.stat().st_size:
            raise _Damage("the last frame is cut")
        if container.format.name == "avi":
            if count < indexed:
                raise _Damage("frames are missing that its index has")
            # The header also counts empty chunks, of dropped frames; a whole index has the others alone.
            if count > indexed and max(count, last) < stream.frames - LOST_INTERVALS:
                raise _Damage("its header tells more frames")
        return
    for frame in decode(None):  # what the decoder still holds came before the damage
        if frame.is_corrupt:
            break
        yield frame
    raise _Damage("damaged data")


def _decoder(stream: Any) -> Callable[[Any], list["av.VideoFrame"]]:
    """Return the function that decodes a stream's packets, by a decoder that keeps its alpha."""
    import av

    name = stream.codec_context.name
    tags = {tag.lower(): value for tag, value in stream.metadata.items()}  # ALPHA_MODE, if the writer was told so
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
    """Yield frames with their times (seconds); one that tells none comes an interval after the one before."""
    time = Fraction(0)
    for frame in frames:
        if tells_times and frame.pts is not None and frame.time_base is not None:
            time = frame.pts * frame.time_base
        yield time, frame
        time += interval or 0
