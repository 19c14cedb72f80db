"""Write clips to files: .npz, .mp4, .gif, or a folder of pictures."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.arrays import FRAMES
from e3d_deploy.data.mosaic import Mosaic
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.files import check_writable, new_file, new_folder
from e3d_deploy.frames import Frames, to_pictures

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

Put = Callable[[NDArray[Any]], None]
"""Function that writes the next frame or picture of a clip."""

SUFFIXES = (".npz", ".mp4", ".gif", "")
MAX_SIDE = {".mp4": 16_384, ".gif": 65_535, "": 2**31 - 1}
"""Maximum side of a picture (pixels): of libx264, of GIF and of PNG."""
MAX_PIXELS = {".mp4": 35_651_584, ".gif": 89_478_485, "": 89_478_485}
"""Maximum number of pixels in a picture: of H.264 at level 6.2, and without a warning when Pillow reads the picture."""
KINDS = {".mp4": "H.264", ".gif": "a GIF", "": "a PNG"}
LONGEST_S = {".mp4": 1000.0, ".gif": 655.35}
"""Maximum duration of a frame (s): the longest that FFmpeg writes to an MP4, and that a GIF can store."""
BT_601 = 6
"""FFmpeg's code of the colour space to which it converts RGB."""
BROWSERS_RATE = 50
"""Maximum rate at which programs play a GIF correctly (frames per second); they show shorter frames for 0.1 s."""
MAX_GIF_RATE = 100
"""Maximum rate at which no frame of a GIF is dropped (frames per second)."""
DIGITS = 4
"""Smallest number of digits in the names of pictures; more than 10,000 pictures need more."""


def check_clips_path(path: Path) -> None:
    """Check that `write_clips` can write to a path, before any work is done.

    Raises:
        ConfigError: the suffix is unknown, the path is a folder that is not empty, or its parent does not exist.
    """
    if _kind(path) not in SUFFIXES:
        raise ConfigError(f"{path}: got {path.suffix}, expected .npz, .mp4, .gif, or no suffix for a folder")
    if path.name and path.name.lower() in ("-", *SUFFIXES):
        raise ConfigError(
            f"{path}: is not the name of a file or folder; give one, such as forecast{path.name.strip('-')}"
        )
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: already exists and is not an empty folder; choose another path")
    check_writable(path, folder=path.suffix == "")


def check_size(
    path: Path, size: tuple[int, int], channels: int, *, frames_per_second: float = 10, zoom: int = 1
) -> None:
    """Check that frames of a size can be written to a path, before any work is done.

    Args:
        path: output path; its suffix decides the format.
        size: height and width of the frames before `zoom` (pixels).
        channels: colours of the frames.
        frames_per_second: rate of the video.
        zoom: pixels of the picture per pixel of a frame.

    Raises:
        ConfigError: the picture is too large for the format, the rate is too low for it, or the frames have neither 1
            nor 3 colours.
    """
    kind = _kind(path)
    if kind == ".npz":
        return
    if channels not in (1, 3):
        raise ConfigError(f"{path}: pictures have 1 or 3 colours, the frames {channels}; write .npz")
    height, width = (zoom * side for side in size)
    if max(height, width) > MAX_SIDE[kind] or height * width > MAX_PIXELS[kind]:
        raise ConfigError(
            f"{path}: the picture is {width} pixels wide and {height} high, but {KINDS[kind]} holds at most "
            f"{MAX_SIDE[kind]} per side and {MAX_PIXELS[kind]} in all; give a smaller --zoom or fewer clips, "
            "or write .npz"
        )
    longest_s = LONGEST_S.get(kind)
    if longest_s is not None and frames_per_second * longest_s < 1:
        raise ConfigError(
            f"{path}: got {frames_per_second:g} frames per second, but {KINDS[kind]} shows a frame for at most "
            f"{longest_s:g} s; write .npz, or a folder of pictures"
        )


def write_clips(
    path: Path, frames: Frames, *, truth: Frames | None = None, frames_per_second: float = 10, zoom: int = 1
) -> None:
    """Write clips [B, T, C, H, W] to `path`, in the format of its suffix; an existing file is replaced.

    The output appears only when it is complete. A `.npz` has the arrays `frames` and, if it is given, `truth`, float32
    [B, T, H, W, C], not clipped. A `.mp4`, a `.gif` or a folder of PNG shows the frames clipped to [0, 1] and laid out
    by `Mosaic`.

    Args:
        path: output path.
        frames: the clips.
        truth: true frames at the times of the forecast, NaN if a frame is unknown.
        frames_per_second: rate of the video.
        zoom: pixels of the picture per pixel of a frame; ignored for `.npz`.

    Raises:
        ConfigError: see `check_clips_path` and `check_size`.
        BackendUnavailable: writing pictures or a video needs the extra `video`.
    """
    check_clips_path(path)
    if _kind(path) == ".npz":
        arrays = {FRAMES: frames} if truth is None else {FRAMES: frames, "truth": truth}
        with new_file(path) as partial:
            _save(partial, {name: np.moveaxis(array, -3, -1) for name, array in arrays.items()})
        return
    B, _, C, H, W = frames.shape
    mosaic = Mosaic(clips=B, image_size=(H, W), compared=truth is not None)
    with writing(path, mosaic.size, C, frames_per_second=frames_per_second, zoom=zoom) as put:
        for frame in mosaic.play(frames, truth):
            put(frame)


@contextmanager
def writing(
    path: Path, size: tuple[int, int], channels: int, *, frames_per_second: float = 10, zoom: int = 1
) -> Iterator[Put]:
    """Yield a function that writes the next frame [C, H, W] of a clip; the file appears when the block ends.

    Only `.npz` keeps the frames in memory.

    Raises:
        ConfigError, BackendUnavailable: see `write_clips`.
    """
    check_clips_path(path)
    check_size(path, size, channels, frames_per_second=frames_per_second, zoom=zoom)
    kind = _kind(path)
    with new_file(path) if kind else new_folder(path) as partial:
        if kind == ".npz":
            kept: list[Frames] = []
            yield kept.append
            _save(partial, {FRAMES: np.moveaxis(np.stack(kept)[None], -3, -1)})
            return
        height, width = (zoom * side for side in size)
        with _writer(kind, partial, (height, width), frames_per_second) as put:
            yield lambda frame: put(to_pictures(frame).repeat(zoom, axis=0).repeat(zoom, axis=1))


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, NumPy would append .npz to a name such as CLIP.NPZ
        np.savez_compressed(file, **arrays)


def _writer(kind: str, path: Path, size: tuple[int, int], frames_per_second: float) -> AbstractContextManager[Put]:
    """Return a context manager that yields a function, which writes pictures, uint8 [H, W, C]."""
    if kind == ".mp4":
        return _writing_mp4(path, size, exact_rate(frames_per_second))
    if kind == ".gif":
        return _writing_gif(path, frames_per_second)
    return _writing_folder(path)


def exact_rate(frames_per_second: float) -> Fraction:
    """Return a rate as a fraction: 30000/1001 for 29.97003, 1/60 for one frame per minute."""
    if frames_per_second < 1:
        return 1 / Fraction(1 / frames_per_second).limit_denominator(1001)
    return Fraction(frames_per_second).limit_denominator(1001)


@contextmanager
def _writing_mp4(path: Path, size: tuple[int, int], rate: Fraction) -> Iterator[Put]:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    height, width = size
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = BT_601  # without it players assume BT.709 for large videos
        stream.options = {"crf": "18"}

        def put(picture: NDArray[Any]) -> None:
            container.mux(stream.encode(video_frame(picture)))

        yield put
        container.mux(stream.encode())


def video_frame(picture: NDArray[np.uint8]) -> "av.VideoFrame":
    """Return a picture [H, W, C], gray or RGB, for an encoder; odd sides are padded, because H.264 needs even ones."""
    import av

    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rgb = np.ascontiguousarray(np.broadcast_to(padded, (*padded.shape[:2], 3)))
    return av.VideoFrame.from_ndarray(rgb, format="rgb24")


@contextmanager
def _writing_gif(path: Path, frames_per_second: float) -> Iterator[Put]:
    """Write an endless GIF frame by frame, because Pillow's own `save` merges equal successive frames into one."""
    image_of = _image_maker()
    from PIL.GifImagePlugin import getdata, getheader
    from PIL.ImageChops import difference

    _warn_of_rate(frames_per_second)
    delays, before = gif_delays(frames_per_second), None
    with path.open("wb") as file:

        def put(picture: NDArray[Any]) -> None:
            nonlocal before
            delay_cs = next(delays)
            if delay_cs == 0:
                return
            image = image_of(picture)
            box = (0, 0, *image.size)
            if before is None:
                file.writelines(getheader(_with_palette(image.copy()), info={"loop": 0})[0])
            else:
                box = difference(before, image).getbbox() or (0, 0, 1, 1)
            changed = _with_palette(image.crop(box))
            own_colours = before is not None and changed.mode == "P"
            file.writelines(getdata(changed, box[:2], duration=10 * delay_cs, include_color_table=own_colours))
            before = image

        yield put
        file.write(b";")


def _with_palette(image: Any) -> Any:
    """Return a colour picture with a palette of 256 colours; a gray picture needs none."""
    return image.quantize() if image.mode == "RGB" else image


def _warn_of_rate(frames_per_second: float) -> None:
    """Log how programs will play a GIF with a high frame rate."""
    if frames_per_second > MAX_GIF_RATE:
        log.warning("GIF: holds at most %d frames per second, so some of %.4g are dropped; write .mp4 to keep them",
                    MAX_GIF_RATE, frames_per_second)  # fmt: skip
    elif frames_per_second > BROWSERS_RATE:
        log.warning("GIF: has %.4g frames per second, but most programs play more than %d slower; write .mp4, or use "
                    "fewer frames with --every", frames_per_second, BROWSERS_RATE)  # fmt: skip


def gif_delays(frames_per_second: float) -> Iterator[int]:
    """Yield the delay of each frame (1/100 s), rounded so that the sum of the delays is correct after each frame.

    Above 100 frames per second some delays are 0; frames with such a delay must be skipped.
    """
    rate, shown = exact_rate(frames_per_second), 0
    for number in count(1):
        until = max(1, round(100 * number / rate))
        yield until - shown
        shown = until


@contextmanager
def _writing_folder(path: Path) -> Iterator[Put]:
    image_of, written = _image_maker(), 0

    def name(number: int, digits: int) -> Path:
        return path / f"frame_{number:0{digits}d}.png"

    def put(picture: NDArray[Any]) -> None:
        nonlocal written
        file = name(written, DIGITS)
        try:
            image_of(picture).save(file)
        except OSError:  # remove the incomplete picture, because callers may keep the earlier ones
            file.unlink(missing_ok=True)
            raise
        written += 1

    yield put
    digits = len(str(written - 1))
    if digits > DIGITS:  # make all names equally long, so that every program sorts them correctly
        for number in range(10**DIGITS):
            name(number, DIGITS).rename(name(number, digits))


def _image_maker() -> Callable[[NDArray[Any]], Any]:
    """Return a function that converts a picture, uint8 [H, W, C], to a Pillow image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    return lambda picture: Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
