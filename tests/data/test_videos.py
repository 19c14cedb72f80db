"""Videos are read as players show them; damaged videos end with an error."""

import gc
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from e3d_deploy.config import Fit
from e3d_deploy.data import videos
from e3d_deploy.data.clips import play, read_clips
from e3d_deploy.data.container_end import missing_end
from e3d_deploy.data.form import Form
from e3d_deploy.data.rate import Selection, select_by_time, selected_frames
from e3d_deploy.data.readers import Reader
from e3d_deploy.data.videos import Single
from e3d_deploy.errors import ClipError, SourceLost
from e3d_deploy.progress import silent

SIZE = (32, 48)
"""Height and width of the videos (pixels)."""
CODED = 8  # gray levels between a picture and its video; measured 1.25, but swscale rounds differently on other CPUs
COUNT = 30
"""Frames of the videos in tests of damage."""


def form(size: tuple[int, int] = SIZE, channels: int = 1, fit: Fit = "stretch") -> Form:
    return Form(image_size=size, channels=channels, fit=fit)


def ramp(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a picture that every flip changes."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    return np.asarray(20 + 140 * rows / size[0] + 70 * columns / size[1], np.uint8)


def moving(count: int, size: tuple[int, int] = SIZE) -> list[NDArray[np.uint8]]:
    """Return moving pictures with noise, so that each picture takes some bytes."""
    noise = np.random.default_rng(0).integers(0, 40, (count, *size), dtype=np.uint8)
    return [np.roll(ramp(size), 2 * number, axis=1) // 2 + noise[number] for number in range(count)]


def write(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times_ms: Sequence[int] = (),
    gop: int = 10,
    codec_options: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a video of gray pictures [H, W] or RGBA pictures [H, W, 4], at 25 frames per second or at given times.

    Args:
        options: `turn` is (degrees, hflip, vflip), `container` are options of the container, `tags` those of the
            stream; the rest are attributes of the codec.
    """
    container_options, turn, tags = options.pop("container", {}), options.pop("turn", None), options.pop("tags", {})
    defaults = {
        "libx264": {"crf": "1"},
        "libvpx": {"auto-alt-ref": "0"},
        "libx265": {"x265-params": "log-level=none"},
    }.get(codec, {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=1000 if times_ms else 25, options=codec_options or defaults)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = pixels, gop
        stream.metadata.update(tags)
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for number, picture in enumerate(pictures):
            colours = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
            frame = av.VideoFrame.from_ndarray(colours, "rgba" if colours.shape[2] == 4 else "rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path, form_: Form | None = None, **options: Any) -> NDArray[np.uint8]:
    return np.stack(list(play(path, form_ or form(), **options).pictures))


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(message for _, level, message in caplog.record_tuples if level == logging.WARNING)


# Display


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".3gp"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
def test_the_display_matrix_is_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, degrees: int, flips: tuple[bool, bool]
) -> None:
    """The turn is counter-clockwise, and the flips follow it."""
    shown = np.rot90(ramp(), degrees // 90)
    shown = shown[:, ::-1] if flips[0] else shown
    shown = shown[::-1] if flips[1] else shown
    path = write(tmp_path / f"phone{suffix}", [ramp()] * 2, turn=(degrees, *flips))
    size = (shown.shape[0] // 2, shown.shape[1] // 2)
    found = frames_of(path, form(size))[0, ..., 0]
    expected = shown.reshape(size[0], 2, size[1], 2).mean(axis=(1, 3))
    assert np.abs(found - expected).max() <= CODED
    assert f"{shown.shape[0]}×{shown.shape[1]} yuv420p, scaled to" in messages(caplog)


@pytest.mark.parametrize(("fit", "rows", "columns"), [("stretch", 32, 16), ("crop", 32, 32), ("pad", 16, 16)])
def test_the_pixel_aspect_ratio_is_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fit: Fit, rows: int, columns: int
) -> None:
    """Pixels are shown twice as wide, so the picture is 32×64; the middle half of its width is white."""
    picture = np.zeros((32, 32), np.uint8)
    picture[:, 8:24] = 255
    path = write(tmp_path / "wide.mp4", [picture] * 2, sample_aspect_ratio=Fraction(2, 1))
    white = frames_of(path, form((32, 32), fit=fit))[0, ..., 0] > 127
    assert (white.any(axis=1).sum(), white.any(axis=0).sum()) == (rows, columns)
    assert "32×64" in messages(caplog)


@pytest.mark.parametrize(("fit", "turn", "bright"), [("crop", 90, (16, 16)), ("pad", 90, (8, 8)), ("pad", 0, (8, 8))])
def test_turned_videos_are_fitted_as_they_are_shown(
    tmp_path: Path, fit: Fit, turn: int, bright: tuple[int, int]
) -> None:
    """The stored picture is 32×64, and the middle half of its longer side is white."""
    picture = np.zeros((32, 64), np.uint8)
    picture[:, 16:48] = 255
    path = write(tmp_path / "phone.mp4", [picture] * 2, turn=(turn, False, False))
    white = frames_of(path, form((16, 16), fit=fit))[0, ..., 0] > 127
    assert (white.any(axis=1).sum(), white.any(axis=0).sum()) == bright


CLEAR = np.zeros(SIZE, bool)
CLEAR[:, :16] = True
TRANSPARENT = np.dstack([np.where(CLEAR, 255, 200)] * 3 + [np.where(CLEAR, 0, 255)]).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("vp8.webm", "libvpx", "yuva420p"),
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("animation.mov", "qtrle", "argb"),
        ("png.mov", "png", "rgba"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_of_videos_are_shown_over_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, pixels: str, channels: int
) -> None:
    path = write(tmp_path / name, [TRANSPARENT] * 2, codec=codec, pixels=pixels)
    found = frames_of(path, form(channels=channels)).astype(int)
    assert found.shape[0] == 2
    assert found[:, :, :14].max() <= CODED
    assert np.abs(found[:, :, 18:] - 200).max() <= CODED
    assert messages(caplog).count("transparent pixels, which are shown over black") == 1


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_is_recognised_by_a_tag_in_capitals(tmp_path: Path, codec: str) -> None:
    """FFmpeg's usual `-metadata:s:v:0 alpha_mode=1` writes such a tag, which hides the flag of the header."""
    tags = {"alpha_mode": "1"}
    path = write(tmp_path / "film.webm", [TRANSPARENT] * 2, codec=codec, pixels="yuva420p", tags=tags)
    with av.open(str(path)) as container:
        assert "ALPHA_MODE" in container.streams.video[0].metadata
    assert frames_of(path)[:, :, :14].max() <= CODED


def test_transparent_pixels_of_a_gif_are_shown_over_black(tmp_path: Path) -> None:
    from PIL import Image

    pages = [Image.fromarray(np.where(CLEAR, 0, level).astype(np.uint8)) for level in (1, 2)]
    for page in pages:
        page.putpalette([255, 255, 255, 200, 200, 200, 90, 90, 90])
    pages[0].save(tmp_path / "clear.gif", save_all=True, append_images=pages[1:], transparency=0, disposal=2)
    found = frames_of(tmp_path / "clear.gif").astype(int)
    assert found[:, :, :16].max() == 0
    assert np.abs(found[:, :, 16:, 0] - np.array([200, 90])[:, None, None]).max() <= CODED


@pytest.mark.parametrize(
    ("pixels", "range_", "shown"),
    [("gray", 1, 255), ("gray", 2, 235), ("yuv420p", 1, 255), ("yuvj420p", 2, 235)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_limited_colours_are_widened(tmp_path: Path, pixels: str, range_: int, shown: int, channels: int) -> None:
    """A stored 235 is white only in the limited range."""
    with av.open(str(tmp_path / "gray.mkv"), "w") as container:
        stream = container.add_stream("ffv1" if pixels == "gray" else "libx264", rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.codec_context.color_range = pixels, range_
        frame = av.VideoFrame(SIZE[1], SIZE[0], pixels)
        for number, plane in enumerate(frame.planes):
            plane.update(bytes([128 if number else 235]) * plane.buffer_size)
        frame.color_range = range_
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(frames_of(tmp_path / "gray.mkv", form(channels=channels)).astype(int) - shown).max() <= 3


@pytest.mark.parametrize(
    ("size", "told", "red"),
    [
        ((720, 1280), 2, (200, 30, 30)),
        ((1280, 720), 2, (200, 30, 30)),
        ((576, 1024), 2, (184, 12, 31)),
        ((576, 1024), 1, (200, 30, 30)),
        ((720, 1280), 6, (184, 12, 31)),
    ],
)
def test_an_unspecified_colour_space_follows_from_the_size(
    tmp_path: Path, size: tuple[int, int], told: int, red: tuple[int, int, int]
) -> None:
    """The pixels are (200, 30, 30) if read as BT.709, and (184, 12, 31) if read as BT.601."""
    with av.open(str(tmp_path / "red.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        stream.codec_context.colorspace = told
        frame = av.VideoFrame(size[1], size[0], "yuv420p")
        for plane, value in zip(frame.planes, (73, 111, 203), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = frames_of(tmp_path / "red.mkv", form(channels=3))
    assert np.abs(found.astype(int) - red).max() <= 3
    if told == 2:
        luma = frames_of(tmp_path / "red.mkv", form())
        assert np.abs(luma - (73 - 16) * 255 / 219).max() <= 1


@pytest.mark.parametrize(
    ("codec", "settings", "message"),
    [
        ("libx264", {"codec_options": {"x264-params": "interlaced=1"}}, "interlaced; both fields are read as one"),
        ("libx265", {"color_trc": 16, "pixels": "yuv420p10le"}, "HDR (PQ); its values are used without tone mapping"),
        ("libx265", {"color_trc": 18, "pixels": "yuv420p10le"}, "HDR (HLG)"),
    ],
)
def test_unconverted_properties_are_remarked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, settings: dict[str, Any], message: str
) -> None:
    frames_of(write(tmp_path / "film.mp4", moving(12, (64, 96)), codec=codec, **settings), form((64, 96)))
    assert messages(caplog).count(message) == 1


# Damage

GOOD: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "faststart.mp4": {"container": {"movflags": "faststart"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "open_gop.mp4": {"codec_options": {"x264-params": "open-gop=1:bframes=3"}},
    "old.3gp": {},
    "part4.mp4": {"codec": "mpeg4"},
    "plain.mov": {},
    "plain.mkv": {},
    "live.mkv": {"container": {"live": "1"}},
    "plain.ts": {},
    "part2.ts": {"codec": "mpeg2video"},
    "disc.m2ts": {"container": {"mpegts_m2ts_mode": "1"}},
    "part4.avi": {"codec": "mpeg4", "bit_rate": 4_000_000},
    "motion.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "raw.avi": {"codec": "rawvideo"},
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {"deadline": "realtime", "cpu-used": "8"}},
    "plain.flv": {},
    "plain.wmv": {"codec": "wmv2"},
    "plain.gif": {"codec": "gif", "pixels": "rgb8"},
    "plain.ogv": {"codec": "libvpx"},
    "part2.vob": {"codec": "mpeg2video", "bit_rate": 4_000_000},
    "raw.y4m": {"codec": "wrapped_avframe"},
}
"""Settings of complete videos of `COUNT` frames, by file name."""
ASF_PACKETS = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
"""Start of the object of an ASF or WMV file that holds the packets."""
ASF_INDEX = bytes.fromhex("90080033b1e5cf1189f400a0c90349cb")
"""Start of the object of an ASF or WMV file that holds the index."""
UNOPENED = ("plain.mp4", "open_gop.mp4", "old.3gp", "part4.mp4", "plain.mov")
"""Videos that cannot be opened without their end, because it holds their index."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    pictures = moving(COUNT)
    return {name: write(folder / name, pictures, **options).read_bytes() for name, options in GOOD.items()}


@pytest.mark.parametrize("name", GOOD)
def test_complete_videos_are_read_completely(
    tmp_path: Path, good: dict[str, bytes], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).write_bytes(good[name])
    assert len(frames_of(tmp_path / name)) == COUNT
    assert read_clips(tmp_path / name, form(), most=2).frames.shape[1] == 2
    assert "frame times" not in messages(caplog)


@pytest.mark.parametrize("share", [0.6, 0.93])
@pytest.mark.parametrize("name", GOOD)
def test_videos_that_are_cut_end_with_an_error(tmp_path: Path, good: dict[str, bytes], name: str, share: float) -> None:
    path = tmp_path / name
    path.write_bytes(good[name][: int(len(good[name]) * share)])
    kind = ClipError if name in UNOPENED else SourceLost
    for read in (lambda: frames_of(path), lambda: read_clips(path, form(), most=2)):
        with pytest.raises(kind, match=r"(broke off after \d+.* frames|not a video that can be read|no video) \("):
            read()
    with pytest.raises(kind):
        Reader(form=form(), skip_bad=False, progress=silent).open(path)
    reader = Reader(form=form(), skip_bad=True, progress=silent)
    assert reader.open(path) == []
    assert list(reader.skipped) == [str(path)]


def test_the_error_states_the_number_of_good_frames(tmp_path: Path, good: dict[str, bytes]) -> None:
    content = good["faststart.mp4"]
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(SourceLost, match=rf"broke off after 1\d of {COUNT} frames \(it has \d+ bytes of \d+\)"):
        frames_of(tmp_path / "cut.mp4")


@pytest.mark.parametrize("name", ["plain.mp4", "fragments.mp4", "plain.mkv", "plain.ts", "part4.avi", "motion.avi"])
def test_damage_in_the_middle_is_an_error(tmp_path: Path, good: dict[str, bytes], name: str) -> None:
    """The damage is a stretch of zeros, after the frames that a prediction needs."""
    content = bytearray(good[name])
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(1500)
    (tmp_path / name).write_bytes(content)
    for most in (None, 2):
        with pytest.raises(SourceLost, match="broke off after"):
            read_clips(tmp_path / name, form(), most=most)


@pytest.mark.parametrize("name", ["plain.mkv", "live.mkv", "vp9.webm", "plain.ogv", "plain.flv", "part2.vob"])
def test_random_bytes_that_the_demuxer_skips_are_an_error(tmp_path: Path, good: dict[str, bytes], name: str) -> None:
    content = bytearray(good[name])
    middle = len(content) // 2
    content[middle : middle + 5000] = np.random.default_rng(0).bytes(5000)
    (tmp_path / name).write_bytes(content)
    for most in (None, 2):
        with pytest.raises(SourceLost, match=r"it is damaged at byte \d+"):
            read_clips(tmp_path / name, form(), most=most)


@pytest.mark.parametrize("name", ["plain.mkv", "plain.ogv"])
def test_one_wrong_byte_is_found_by_a_checksum(tmp_path: Path, good: dict[str, bytes], name: str) -> None:
    content = bytearray(good[name])
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceLost, match=r"damaged at byte \d+, where a checksum does not match"):
        frames_of(tmp_path / name)


def test_an_index_of_zeros_is_an_error(tmp_path: Path, good: dict[str, bytes]) -> None:
    """Without a valid index the demuxer builds its own from the frames that it finds."""
    content = good["part4.avi"]
    (tmp_path / "zeros.avi").write_bytes(content[: content.rindex(b"idx1")].ljust(len(content), b"\0"))
    (tmp_path / "part.avi").write_bytes(content[:-100].ljust(len(content), b"\0"))
    for name in ("zeros.avi", "part.avi"):
        with pytest.raises(SourceLost, match="filled with zeros"):
            frames_of(tmp_path / name)


TAILS = ["raw.avi", "plain.ts", "disc.m2ts", "plain.flv", "plain.wmv", "plain.mkv", "live.mkv", "vp9.webm"]
TAILS += ["plain.ogv", "part2.vob"]


@pytest.mark.parametrize("name", [*TAILS, "fragments.mp4"])
def test_a_tail_of_zeros_is_an_error(tmp_path: Path, good: dict[str, bytes], name: str) -> None:
    """Programs that reserve the space of a download first leave such files if it is not finished."""
    content = good[name]
    kept = int(len(content) * 0.6) // 188 * 188 if name == "plain.ts" else int(len(content) * 0.6)
    (tmp_path / name).write_bytes(content[:kept].ljust(len(content), b"\0"))
    with pytest.raises(SourceLost, match=r"filled with zeros from byte \d+|checksum|its header declares more frames"):
        frames_of(tmp_path / name)


def test_an_object_of_zeros_after_the_frames_of_wmv_is_an_error(tmp_path: Path, good: dict[str, bytes]) -> None:
    content = good["plain.wmv"]
    (tmp_path / "zeros.wmv").write_bytes(content[: content.rindex(ASF_INDEX)].ljust(len(content), b"\0"))
    with pytest.raises(SourceLost, match="filled with zeros"):
        frames_of(tmp_path / "zeros.wmv")


@pytest.mark.parametrize(
    ("away", "wrong"),
    [(-6, b"\x55"), (-4, b"\7"), (1, b"\xff\xff"), (9, b"\xff\xff")],
    ids=["stream", "place", "total", "length"],
)
def test_frames_of_wmv_that_the_demuxer_drops_are_an_error(tmp_path: Path, away: int, wrong: bytes) -> None:
    """A part of a packet has a wrong stream, offset in its frame, size of the frame, or size of its own."""
    path = write(tmp_path / "film.wmv", moving(COUNT, (64, 96)), codec="wmv2")
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    content = bytearray(path.read_bytes())
    # A part begins with the size of its extra data (8), then the size of the frame.
    place = content.index(b"\x08" + sizes[12].to_bytes(4, "little"), content.index(ASF_PACKETS))
    content[place + away : place + away + len(wrong)] = wrong
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) < COUNT
    with pytest.raises(SourceLost, match=r"broke off after \d+ .*frames? \(it is damaged at byte \d+"):
        frames_of(path)


def test_wmv_with_sound_and_frames_of_many_packets_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "film.wmv"
    with av.open(str(path), "w", options={"packet_size": "1500"}) as container:
        film, sound = container.add_stream("wmv2", rate=25), container.add_stream("pcm_s16le", rate=44100)
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        for picture in moving(COUNT, (64, 96)):
            container.mux(film.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, axis=-1), "rgb24")))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 3528), np.int16), "s16")
            noise.sample_rate = 44100
            container.mux(sound.encode(noise))
        container.mux([*film.encode(), *sound.encode()])
    assert missing_end(path) is None
    assert len(frames_of(path)) == COUNT


def test_dropped_frames_of_avi_are_not_an_error(tmp_path: Path, good: dict[str, bytes]) -> None:
    """Dropped frames are empty chunks, which the header and the index count."""
    content = good["raw.avi"]
    chunk = content.index(b"00dc", content.index(b"movi"))
    start, length = content.index(b"idx1"), int.from_bytes(content[chunk + 4 : chunk + 8], "little")
    frames, index = content[chunk : chunk + 20 * (8 + length)], bytearray(content[start:])
    empty = b"00dc" + bytes(4)
    body = frames + empty * 10
    for number in range(COUNT):
        place = 4 + min(number, 20) * (8 + length) + max(number - 20, 0) * 8
        entry = 8 + 16 * number
        index[entry + 8 : entry + 12] = place.to_bytes(4, "little")
        index[entry + 12 : entry + 16] = (length if number < 20 else 0).to_bytes(4, "little")
    head = bytearray(content[:chunk])
    movi = head.index(b"movi")
    head[movi - 4 : movi] = (4 + len(body)).to_bytes(4, "little")
    film = head + body + index
    film[4:8] = (len(film) - 8).to_bytes(4, "little")
    (tmp_path / "dropped.avi").write_bytes(film)
    assert len(frames_of(tmp_path / "dropped.avi")) == 20


def places_of_flv_tags(content: bytes) -> list[int]:
    """Return the offsets of the tags and of the end (bytes)."""
    places = [13]
    while places[-1] < len(content):
        places.append(places[-1] + 15 + int.from_bytes(content[places[-1] + 1 : places[-1] + 4], "big"))
    return places


def test_an_flv_that_is_cut_at_a_tag_is_an_error(tmp_path: Path, good: dict[str, bytes]) -> None:
    content = good["plain.flv"]
    (tmp_path / "cut.flv").write_bytes(content[: places_of_flv_tags(content)[20]])
    with pytest.raises(SourceLost, match=rf"broke off after 1\d .*frames \(it has \d+ bytes of {len(content)}\)"):
        frames_of(tmp_path / "cut.flv")


@pytest.mark.parametrize("told", ["duration", "filesize"])
def test_one_wrong_number_in_the_header_of_flv_is_no_damage(tmp_path: Path, good: dict[str, bytes], told: str) -> None:
    content = bytearray(good["plain.flv"])
    place = content.index(told.encode() + b"\0") + len(told) + 1
    content[place : place + 8] = struct.pack(">d", 1e6)
    (tmp_path / "film.flv").write_bytes(content)
    assert len(frames_of(tmp_path / "film.flv")) == COUNT


@pytest.mark.parametrize("name", ["plain.mp4", "fragments.mp4", "plain.mov", "old.3gp", "plain.flv", "plain.wmv"])
def test_two_files_in_one_are_refused(tmp_path: Path, good: dict[str, bytes], name: str) -> None:
    """FFmpeg would play only the first file."""
    (tmp_path / name).write_bytes(good[name] * 2)
    with pytest.raises(ClipError, match="holds two files one after the other; join them with a video tool"):
        play(tmp_path / name, form())


def test_the_error_states_the_reason_once(tmp_path: Path, good: dict[str, bytes]) -> None:
    content = good["faststart.mp4"]
    (tmp_path / "cut.mp4").write_bytes(content[: content.index(b"mdat") + 4])
    with pytest.raises(ClipError) as caught:
        frames_of(tmp_path / "cut.mp4")
    assert str(caught.value).count("it has") == 1


# Files that name others


@pytest.fixture
def visitors() -> Iterator[tuple[str, list[Any]]]:
    """Yield the address of a server that hangs up at once, and the list of its visitors."""
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    visitor, address = server.accept()
                    came.append(address)
                    visitor.close()

        Thread(target=hang_up, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", came
        server.shutdown(socket.SHUT_RDWR)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAYLIST.format("http://{0}/1.ts"),
        PLAYLIST.format("tcp://{0}"),
        "ffconcat version 1.0\nfile http://{0}/1.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    ],
)
def test_no_address_in_a_file_is_contacted(tmp_path: Path, visitors: tuple[str, list[Any]], text: str) -> None:
    address, came = visitors
    (tmp_path / "live.m3u8").write_text(text.format(address))
    with pytest.raises(ClipError, match=r"not a video that can be read|holds no video"):
        frames_of(tmp_path / "live.m3u8")
    assert came == []


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ts"])
@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile plain.ts\n", PLAYLIST.format("plain.ts")])
def test_a_list_of_videos_is_refused(tmp_path: Path, good: dict[str, bytes], name: str, text: str) -> None:
    (tmp_path / "plain.ts").write_bytes(good["plain.ts"])
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ClipError, match=r"not a video that can be read \(a list of other files, which are not opened\)"
    ):
        frames_of(tmp_path / name)


def test_an_empty_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").touch()
    with pytest.raises(ClipError, match=r"not a video that can be read \(empty\)"):
        play(tmp_path / "film.mp4", form())


def test_a_video_that_is_not_played_is_closed(tmp_path: Path, good: dict[str, bytes]) -> None:
    path = tmp_path / "plain.ts"
    path.write_bytes(good["plain.ts"])
    opened = Single(path)
    film = av.open(opened)
    file = opened.file
    del opened, film
    gc.collect()
    assert file.closed


def avif(path: Path, pages: Sequence[NDArray[np.uint8]]) -> Path:
    """Write an animated AVIF."""
    from PIL import Image, features

    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    images = [Image.fromarray(page) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, quality=95)
    return path


@pytest.mark.parametrize("count", [1, 8])
def test_each_frame_of_an_avif_is_played(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """An animated AVIF also holds its first frame as a still picture."""
    pages = [np.full((*SIZE, 3), 20 * number + 20, np.uint8) for number in range(count)]
    found = frames_of(avif(tmp_path / "film.avif", pages))
    assert np.abs(found[:, 0, 0, 0].astype(int) - np.arange(20, 20 * count + 20, 20)).max() <= CODED
    assert "streams" not in messages(caplog)


def test_an_avif_with_transparency_is_refused(tmp_path: Path) -> None:
    path = avif(tmp_path / "film.avif", [TRANSPARENT] * 3)
    with pytest.raises(ClipError, match="an AVIF with transparency or tiles, which are not supported"):
        play(path, form())


def two_streams(path: Path, sizes: Sequence[tuple[int, int]], dispositions: Sequence[Any]) -> Path:
    """Write a video of several streams, each of one gray level: 60, 120 and so on."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in sizes]
        for stream, size, disposition in zip(streams, sizes, dispositions, strict=True):
            stream.height, stream.width = size
            stream.pix_fmt, stream.disposition = "yuv420p", disposition
        for _ in range(3):
            for number, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
                picture = np.full((*size, 3), 60 * (number + 1), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


NONE, DEFAULT = av.stream.Disposition(0), av.stream.Disposition.default


@pytest.mark.parametrize(
    ("sizes", "dispositions", "taken"),
    [
        ([(24, 32), (48, 64)], [NONE, NONE], 2),
        ([(48, 64), (24, 32)], [NONE, NONE], 1),
        ([(48, 64), (24, 32)], [NONE, DEFAULT], 2),
    ],
)
def test_the_default_or_largest_stream_is_read(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sizes: list[tuple[int, int]],
    dispositions: list[Any],
    taken: int,
) -> None:
    found = frames_of(two_streams(tmp_path / "two.mkv", sizes, dispositions))
    assert np.abs(found.astype(int) - 60 * taken).max() <= CODED
    assert messages(caplog).count(f"two.mkv: has 2 video streams; number {taken} of") == 1


def test_frames_after_the_requested_ones_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--every` the check decodes no more frames, and it scales none."""
    brought: list[int] = []
    original = videos.FrameConverter.__call__

    def counting(self: videos.FrameConverter, frame: av.VideoFrame) -> NDArray[np.uint8]:
        brought.append(1)
        return original(self, frame)

    monkeypatch.setattr(videos.FrameConverter, "__call__", counting)
    monkeypatch.setattr(videos, "CHECKED", 5)
    path = write(tmp_path / "film.mp4", moving(40))
    film = play(path, form(), selection=Selection(every=4))
    assert len(list(islice(film.pictures, 2))) == 2
    videos.check_rest(path, film.rest)
    assert len(brought) == 5
    assert len(list(film.rest)) == 40 - 5 - 5


def test_a_long_video_is_checked_for_its_end(
    tmp_path: Path, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut is after the frames that are decoded for the check."""
    monkeypatch.setattr("e3d_deploy.data.videos.CHECKED", 1)
    (tmp_path / "cut.mkv").write_bytes(good["plain.mkv"][:-9])
    with pytest.raises(SourceLost, match=r"breaks off, it has \d+ bytes of \d+; copy or export it again"):
        read_clips(tmp_path / "cut.mkv", form(), most=2)


@pytest.mark.parametrize("name", ["plain.mkv", "plain.ogv"])
def test_checksums_are_checked_only_if_all_frames_are_read(
    tmp_path: Path, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Checksums require reading the whole file, which may be much larger than the requested frames."""
    monkeypatch.setattr("e3d_deploy.data.videos.CHECKED", 1)
    content = bytearray(good[name])
    content[len(content) * 3 // 4] ^= 1
    (tmp_path / name).write_bytes(content)
    assert "checksum" in (missing_end(tmp_path / name) or "")
    assert len(read_clips(tmp_path / name, form(), most=2).clips[0]) == 2
    with pytest.raises(SourceLost, match="checksum"):
        read_clips(tmp_path / name, form())


def copied(source: Path, target: Path, kept: Callable[[int, av.Packet], bytes | None]) -> Path:
    """Copy a video without coding; `kept` returns the new bytes of a packet, or None to drop it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for number, packet in enumerate(packets):
            if (content := kept(number, packet)) is not None:
                changed = av.Packet(content)
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                new.mux(changed)
    return target


LOW_DELAY = {"x265-params": "bframes=0:keyint=10:min-keyint=10:scenecut=0:log-level=none"}
GROUPS = {"x264-params": "bframes=0:keyint=10:min-keyint=10:scenecut=0"}


@pytest.mark.parametrize(
    ("name", "lost", "settings", "told"),
    [
        ("hevc.mp4", 12, {"codec": "libx265", "codec_options": LOW_DELAY}, "22 of 29"),
        ("hevc.mkv", 10, {"codec": "libx265", "codec_options": LOW_DELAY}, "20 of 29"),
        ("first.mp4", 0, {"codec_options": GROUPS}, "20 of 29"),
        ("first.mkv", 0, {"codec_options": GROUPS}, "20 of 29"),
        ("key.mp4", 10, {"codec_options": GROUPS}, "21 of 29"),
    ],
)
def test_frames_that_depend_on_missing_frames_are_an_error(
    tmp_path: Path, name: str, lost: int, settings: dict[str, Any], told: str
) -> None:
    """The video is a recording from a camera, of which one packet was lost."""
    whole = write(tmp_path / f"whole_{name}", moving(COUNT, (64, 96)), **settings)
    path = copied(whole, tmp_path / name, lambda number, packet: None if number == lost else bytes(packet))
    with pytest.raises(SourceLost, match=rf"gives {told} frames, the others are damaged or depend on missing frames"):
        frames_of(path)
    with pytest.raises(SourceLost, match=told):
        read_clips(path, form(), most=2)


@pytest.fixture(scope="module")
def av1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("av1") / "film.mp4"
    options = {"preset": "12", "crf": "20"}
    return write(
        path, moving(COUNT, (64, 96)), codec="libsvtav1", codec_options=options, container={"movflags": "faststart"}
    )


@pytest.mark.parametrize("share", [0.05, 0.4, 0.7, 0.95, 1])
def test_zeros_in_av1_are_an_error(tmp_path: Path, av1: Path, share: float) -> None:
    """The decoder of AV1 skips zeros as units of an unknown type."""
    content = av1.read_bytes()
    kept = len(content) if share == 1 else content.index(b"mdat") + int(share * (len(content) - content.index(b"mdat")))
    (tmp_path / "film.mp4").write_bytes(content[:kept].ljust(len(content), b"\0"))
    if share == 1:
        assert len(frames_of(tmp_path / "film.mp4")) == COUNT
    else:
        with pytest.raises(SourceLost, match=rf"gives \d+ of {COUNT} frames|broke off after \d+ of {COUNT} frames"):
            frames_of(tmp_path / "film.mp4")


def test_one_lost_frame_of_av1_is_an_error(tmp_path: Path, av1: Path) -> None:
    with av.open(str(av1)) as container:
        packet = bytes(next(islice(container.demux(video=0), 12, None)))
    (tmp_path / "film.mp4").write_bytes(av1.read_bytes().replace(packet, bytes(len(packet)), 1))
    with pytest.raises(SourceLost, match=rf"gives {COUNT - 1} of {COUNT} frames"):
        frames_of(tmp_path / "film.mp4")


PYRAMID = {"x264-params": "keyint=12:open-gop=1:bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0"}
UNLIKE: dict[str, dict[str, Any]] = {
    "pyramid.mp4": {"codec_options": PYRAMID},
    "pyramid.ts": {"codec_options": PYRAMID},
    "pyramid.mkv": {"codec_options": PYRAMID},
    "refreshed.mp4": {"codec_options": {"x264-params": "intra-refresh=1:keyint=15"}},
    "fields.mp4": {"codec_options": {"x264-params": "interlaced=1:bframes=2"}},
    "fields.ts": {"codec_options": {"x264-params": "interlaced=1:bframes=2"}},
    "open.mkv": {"codec": "libx265", "codec_options": {"x265-params": "keyint=12:open-gop=1:log-level=none"}},
    "open.mov": {"codec": "libx265", "codec_options": {"x265-params": "keyint=12:open-gop=1:log-level=none"}},
    "fields.mov": {"codec": "libx265", "codec_options": {"x265-params": "interlace=tff:log-level=none"}},
    "layers.mkv": {"codec": "libsvtav1", "codec_options": {"preset": "12", "svtav1-params": "hierarchical-levels=4"}},
    "fragments.mp4": {"codec": "libsvtav1", "codec_options": {"preset": "12"}, "container": {"movflags": "empty_moov"}},
    "hidden.webm": {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "hidden.mp4": {"codec": "libvpx-vp9", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "part2.mkv": {"codec": "mpeg2video", "max_b_frames": 2},
    "part2.mov": {"codec": "mpeg2video", "max_b_frames": 2},
    "part4.avi": {"codec": "mpeg4", "max_b_frames": 2},
    "part4.mp4": {"codec": "mpeg4", "max_b_frames": 2},
}
"""Settings of videos whose packets are not in the order of their frames, or that do not show all frames."""


@pytest.mark.parametrize("name", UNLIKE)
def test_a_complete_video_has_no_missing_frame(tmp_path: Path, name: str) -> None:
    assert len(frames_of(write(tmp_path / name, moving(COUNT, (64, 96)), **UNLIKE[name]))) == COUNT


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".flv", ".mov"])
def test_a_cut_at_an_open_group_is_no_damage(tmp_path: Path, suffix: str) -> None:
    """Frames that follow the first key frame but are shown before it cannot be decoded; no player shows them."""
    options = {"x265-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0:log-level=none"}
    whole = write(tmp_path / "whole.mp4", moving(COUNT, (64, 96)), codec="libx265", codec_options=options)
    keys = []

    def kept(number: int, packet: av.Packet) -> bytes | None:
        keys.extend([number] if packet.is_keyframe else [])
        return bytes(packet) if len(keys) > 1 else None

    path = copied(whole, tmp_path / f"cut{suffix}", kept)
    assert COUNT - keys[1] - 5 < len(frames_of(path)) < COUNT - keys[1]


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_recording_that_started_in_mid_stream_is_no_damage(tmp_path: Path, codec: str) -> None:
    whole = write(tmp_path / "whole.ts", moving(COUNT, (64, 96)), codec=codec)
    path = copied(whole, tmp_path / "joined.ts", lambda number, packet: bytes(packet) if number > 4 else None)
    assert 17 <= len(frames_of(path)) <= COUNT - 5


def test_frames_hidden_by_an_edit_list_are_not_missing(tmp_path: Path, good: dict[str, bytes]) -> None:
    """The film begins in the middle of a group of pictures, as after a cut without coding."""
    (tmp_path / "whole.mp4").write_bytes(good["plain.mp4"])
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        early = 5 * stream.duration // COUNT if stream.duration else 0
        for packet in source.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, copy
                target.mux(packet)
    assert len(frames_of(tmp_path / "cut.mp4")) == COUNT - 5


def test_data_after_a_container_is_no_damage(tmp_path: Path, good: dict[str, bytes]) -> None:
    for name in ("plain.mp4", "part4.avi", "plain.gif", "plain.mkv", "vp9.webm"):
        (tmp_path / name).write_bytes(good[name] + bytes(100))
        assert missing_end(tmp_path / name) is None
        assert len(frames_of(tmp_path / name)) == COUNT
    (tmp_path / "text.mkv").write_bytes(good["plain.mkv"] + b"TAG of another program")
    assert missing_end(tmp_path / "text.mkv") is None


# Times

UNEVEN_MS = [0, 40, 80, 120, 160, 400, 640, 880, 1120, 1360]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_frame_times_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str) -> None:
    path = write(tmp_path / f"phone{suffix}", moving(10), times_ms=UNEVEN_MS)
    frames_of(path)
    assert messages(caplog).count("frame times vary from 40 to 240 ms; `ffmpeg -i VIDEO -r N NEW` makes them even") == 1
    caplog.clear()
    frames_of(path, selection=Selection(resample=10))
    assert "frame times" not in messages(caplog)


def test_frames_are_resampled_by_their_own_times(tmp_path: Path) -> None:
    levels = [20 * number + 20 for number in range(10)]
    path = write(tmp_path / "phone.mp4", [np.full(SIZE, level, np.uint8) for level in levels], times_ms=UNEVEN_MS)
    found = frames_of(path, selection=Selection(resample=10))[:, 0, 0, 0]
    expected = [
        min(range(10), key=lambda number, at=at: (abs(UNEVEN_MS[number] - at), -number)) for at in range(0, 1400, 100)
    ]
    assert np.abs(found[: len(expected)] - np.array(levels)[expected]).max() <= CODED
    assert len(found) - len(expected) in (0, 1)  # the last frame lasts for an average interval


def test_the_rate_of_raw_dv_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.dv"
    with av.open(str(path), "w", format="dv") as container:
        stream = container.add_stream("dvvideo", rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = 480, 720, "yuv411p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((480, 720, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert read_clips(path, form()).frames_per_second == pytest.approx(29.97, abs=0.01)


@pytest.mark.parametrize("rate", [3.0, 10.0, 12.5, 24.0, 25.0, 29.97, 60.0])
def test_even_times_are_resampled_like_numbers(rate: float) -> None:
    interval = Fraction(1, 25)
    timed = [(7 + number * interval, number) for number in range(50)]
    assert list(select_by_time(timed, rate, interval=interval)) == selected_frames(50, 25 / rate)


def test_a_frame_is_repeated_for_each_tick_near_it() -> None:
    timed = [(Fraction(0), "a"), (Fraction(1), "b")]
    found = list(select_by_time(timed, 4, interval=Fraction(1)))
    assert found == ["a", "a", "b", "b", "b", "b"]


def motion_jpeg(path: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Write black pictures of several sizes as a video whose header has the size of the first."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width = sizes[0]
        stream.pix_fmt = "yuvj420p"
        for number, (height, width) in enumerate(sizes):
            content = BytesIO()
            Image.fromarray(np.zeros((height, width), np.uint8)).save(content, "JPEG")
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
    return path


def test_frames_that_grow_beyond_the_limit_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = motion_jpeg(tmp_path / "grows.mkv", [(64, 64)] * 3 + [(512, 512)] * 3)
    assert len(list(play(path, form()).pictures)) == 6
    monkeypatch.setattr(videos, "BOUND", {"max_pixels": str(256 * 256)})
    pictures = play(path, form()).pictures
    with pytest.raises(SourceLost, match=r"broke off after 3 of about 6 frames \(damaged, or frames above"):
        list(pictures)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_video_with_frames_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(videos, "BOUND", {"max_pixels": str(256 * 256)})
    with pytest.raises(ClipError, match="frames above 67,108,864 pixels"):
        list(play(motion_jpeg(tmp_path / f"large{suffix}", [(512, 512)] * 3), form()).pictures)


def test_a_header_with_frames_beyond_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(tmp_path / "large.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame(96, 64, "yuv420p")), *stream.encode(None)):
            container.mux(packet)
    monkeypatch.setattr(videos, "MAX_PIXELS", 1000)
    with pytest.raises(ClipError, match="has frames of 64×96, expected at most 1,000 pixels; scale it"):
        play(tmp_path / "large.mkv", form())
