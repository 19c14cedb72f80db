"""Read pictures in files, and folders of pictures as clips. Needs no PyTorch; imports Pillow at the first picture."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data import png, tiff
from e3d_deploy.data.fit import fit_shape, say_change
from e3d_deploy.data.form import Form
from e3d_deploy.data.masks import GROUND_TRUTH, NO_MASKS, is_ground_truth
from e3d_deploy.data.order import in_order
from e3d_deploy.data.rate import TOLERANCE
from e3d_deploy.data.remarks import Look, Remarks
from e3d_deploy.data.series import check_one_series
from e3d_deploy.data.stacks import why_no_clip
from e3d_deploy.errors import BackendUnavailable, ClipError, E3DError
from e3d_deploy.libraries import pip_install
from e3d_deploy.tensors import without_number

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
UNREAD = (
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".ppm", ".pgm", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip
"""Suffixes of picture formats that are not supported."""
NEEDS_VIDEO = f"reading videos and pictures needs the extra `video`: {pip_install('video')}"

STRETCHED = {"L;2": 85, "L;4": 17}
"""For each of Pillow's raw modes, the factor with which Pillow scales the gray values of a PNG to 8 bits."""
BITS_PER_SAMPLE, PHOTOMETRIC, SUBFILE, SAMPLE_FORMAT, ORIENTATION = 258, 262, 254, 339, 274
"""TIFF tags; ORIENTATION is also an EXIF tag."""
ORIENTATION_KEYS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
"""Keys of Pillow's `info` whose values may state the orientation."""
TURNED = (5, 6, 7, 8)
"""Values of `ORIENTATION` for which height and width are swapped."""
DESCRIPTION, SAMPLES = 270, 277
"""TIFF tags: a text, and the number of samples (channels) per pixel."""
WHOLE = (png.SIGNATURE, b"\xff\xd8\xff")
"""First bytes of PNG and JPEG files.

Such files are read completely. Files in different formats are not, because they may be large stacks of pages.
"""
SIGNED = 2
"""Value of `SAMPLE_FORMAT` for signed integers."""
NO_PAGE = 0b101
"""Bits of `SUBFILE` that mark a page as a mask or a smaller copy of another page."""


def is_picture(name: str) -> bool:
    """Return True for a file name of a picture in a supported format."""
    return os.path.splitext(name)[1].lower() in PICTURES


def is_frame(name: str) -> bool:
    """Return True if a file name is that of a picture in a clip: neither hidden nor ground truth or a mask."""
    return is_picture(name) and not name.startswith(".") and not is_ground_truth(name)


def frames_of(names: Sequence[str]) -> list[str]:
    """Return the names of the pictures in a folder that form its clip.

    Ground truth and masks are skipped. If a folder has no other pictures, its masks form the clip.
    """
    visible = [name for name in names if is_picture(name) and not name.startswith(".")]
    frames = [name for name in visible if is_frame(name)]
    return frames or [name for name in visible if not os.path.splitext(name)[0].casefold().endswith(GROUND_TRUTH)]


def unread_pictures(names: Sequence[str]) -> list[str]:
    """Return the names of pictures in formats that are not supported."""
    return [name for name in names if name.lower().endswith(UNREAD) and not name.startswith(".")]


def not_read(folder: Path, unread: Sequence[str]) -> ClipError:
    """Return the error for a folder whose pictures are in formats that are not supported."""
    return ClipError(
        f"{folder}: holds pictures in a format that is not supported ({min(unread)}, {len(unread)} in all); convert "
        "them to PNG or JPEG"
    )


def ordered_pictures(folder: Path, remarks: Remarks) -> Sequence[Path]:
    """Return the pictures of the clip in a folder, ordered by name; remark if a different order is possible.

    Raises:
        ClipError: the folder holds pictures of two series, such as colour and depth.
    """
    names = os.listdir(folder)
    ordered = in_order(folder / name for name in frames_of(names))
    if ordered.files and (unread := unread_pictures(names)):
        text = "%s: skipped pictures in a format that is not supported, %d such as %s; convert them to PNG or JPEG"
        remarks.say(f"unread in {folder}", text, folder, len(unread), min(unread))
    if ordered.remark is not None:
        text = "%s: %s; rename the files if this is not intended"
        remarks.say(f"order of {folder}", text, folder, ordered.remark)
    if (remark := check_one_series(folder, [file.name for file in ordered.files])) is not None:
        remarks.say(f"series of {folder}", "%s: %s; remove pictures of other series", folder, remark)
    return ordered.files


def load_picture(file: Path) -> Any:
    """Read a picture as image viewers display it; return a Pillow image.

    The image is upright, has 8 bits, is gray or RGB, and is blended over black where it is transparent.

    Raises:
        ClipError: the file is not a picture, is damaged, has several pages, or has values of unknown range.
        BackendUnavailable: Pillow is not installed.
    """
    return _displayed(_load(file), file, None)


def read_picture(
    file: Path, form: Form, *, remarks: Remarks | None = None, source: Path | None = None
) -> NDArray[np.uint8]:
    """Return a picture [H, W, C], scaled by averaging to the size and converted to the colours of the model.

    Args:
        file: the picture.
        form: size, colours and fit of the model's frames.
        remarks: collects remarks on conversions; None: no remarks.
        source: folder of the picture's clip, for remarks; None: the picture does not belong to a folder.

    Raises:
        ClipError, BackendUnavailable: see `load_picture`.
    """
    return _fitted(_load(file), file, form, remarks, source or file)


class _Errors:
    """Converts all exceptions that Pillow raises about a file to ClipError; its decoders raise nearly any type.

    Only Pillow may be called within the block. This is a class, because `contextmanager` would take noticeable time
    per picture.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, E3DError | MemoryError):
            raise _unreadable(self.file, without_number(error) or type(error).__name__) from error


def _opened(content: BinaryIO, file: Path) -> Any:
    """Open the image in a file's content; the caller closes it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    try:
        # Pass no file name: given a name, Pillow 13.0 maps the file into memory, which garbles rotated TIFFs.
        image = Image.open(content)
    except UnidentifiedImageError as error:
        raise _unreadable(file, "not in a format that Pillow knows") from error
    _scale_transparent(image)
    return image


def _unreadable(file: Path, reason: str) -> ClipError:
    return ClipError(f"{file}: not a picture that can be read ({reason}); check the file")


def _content(file: Path) -> BinaryIO:
    """Open a file; PNG and JPEG files are read completely.

    The checksums in a PNG that Pillow does not check are checked here.

    Raises:
        ClipError: a checksum does not match.
    """
    stream = file.open("rb", buffering=0)  # a file that is read in one call needs no buffer, which would slow it down
    head = stream.read(len(png.SIGNATURE))
    stream.seek(0)
    if not head.startswith(WHOLE):
        return BufferedReader(stream)
    with stream:
        content = stream.readall()
    if head == png.SIGNATURE and png.has_damage(content):
        raise _unreadable(file, "the checksum of its pixels is wrong")
    return BytesIO(content)


def _scale_transparent(image: Any) -> None:
    """Scale the transparent value of a PNG with 2, 4 or 16 bits to 8 bits, because Pillow scales only the pixels."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or clear is None or not image.tile:
        return
    stored = image.tile[0].args
    if isinstance(clear, int):
        image.info["transparency"] = clear * STRETCHED.get(stored, 1)
    elif stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _load(file: Path) -> Any:
    """Decode the single page of a file.

    Raises:
        ClipError: the file has several pages, cannot be read, or is damaged.
    """
    with _Errors(file), _content(file) as content, _opened(content, file) as image:
        if (pages := len(_pages(image, file))) > 1:
            raise ClipError(
                f"{file}: has {pages} pages, but a picture in a folder is one frame; give the file itself as a source, "
                "or write each page to a file of its own"
            )
        return _decoded(image, 0)


def _decoded(image: Any, page: int) -> Any:
    image.seek(page)
    image.load()
    _orientation(image)  # finds damage in the EXIF data, which Pillow then caches
    return image


def _orientation(image: Any) -> int:
    """Return the orientation of a decoded image from its EXIF data, which Pillow keeps in `info` or in TIFF tags."""
    orientation: int = image.getexif().get(ORIENTATION, 1) if image.info or image.format == "TIFF" else 1
    return orientation


def _load_pages(file: Path) -> Iterator[Any]:
    """Decode the pages of a file, one by one."""
    with _Errors(file), _content(file) as content, _opened(content, file) as image:
        for page in _pages(image, file):
            yield _decoded(image, page)


def _pages(image: Any, file: Path) -> list[int]:
    """Return the pages that belong to the clip: no masks or smaller copies in a TIFF, and no previews in a JPEG.

    Raises:
        ClipError: the pages of a TIFF are not one clip, for example a stack of channels; a TIFF is cut off; or Pillow
            misreads the TIFF or BMP.
    """
    pages = range(getattr(image, "n_frames", 1))
    if image.format == "PNG":
        return list(pages[image.default_image :])  # players of animated PNGs do not show the default image
    if image.format != "TIFF":
        if image.format == "BMP":
            _check_bmp(image, file)
        return list(pages) if image.format in ("WEBP", "GIF") else [0]
    description, samples = image.tag_v2.get(DESCRIPTION), image.tag_v2.get(SAMPLES, 1)
    if (reason := why_no_clip(description, pages=len(pages), samples=samples)) is not None:
        raise ClipError(f"{file}: {reason}")

    if tiff.is_cut(image.fp):
        raise _unreadable(file, "the tags of a page are cut off")

    def is_frame(page: int) -> bool:
        image.seek(page)
        if page and image.tag_v2.get(SUBFILE, 0) & NO_PAGE:
            return False
        is_big_endian = image.tag_v2.prefix == b"MM"
        if (reason := tiff.why_misread(image.tag_v2, image.mode, is_big_endian=is_big_endian)) is not None:
            raise ClipError(f"{file}: {reason}")
        return True

    return [page for page in pages if is_frame(page)]


def _check_bmp(image: Any, file: Path) -> None:
    """Check that a black-and-white BMP has one bit per pixel; Pillow 13.0 reads every such BMP as one bit per pixel."""
    if image.mode == "1" and image.tile[0].codec_name == "raw":
        image.fp.seek(14)  # start of the second header; in its oldest version (12 bytes) the palette has a fixed size
        header = image.fp.read(16)
        if header[0] > 12 and header[14] != 1:
            raise ClipError(f"{file}: Pillow misreads its black-and-white palette; save it as gray or as PNG")


def _displayed(image: Any, file: Path, remarks: Remarks | None) -> Any:
    """Return a decoded image upright, in mode L or RGB, blended over black where transparent."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    upright = image
    if _orientation(image) != 1:
        from PIL import ImageOps  # imported only if needed, because an import takes as long as reading a small picture

        upright = ImageOps.exif_transpose(image)
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise _range_unknown(file)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray(_eight_bits(upright, tags, file))
    if upright.has_transparency_data:
        return _over_black(upright, file, remarks)
    if upright.mode in ("L", "RGB"):  # `convert` would copy the image
        return upright
    try:
        return upright.convert("L" if upright.mode == "1" else "RGB")
    except ValueError as error:
        raise ClipError(f"{file}: got colours {upright.mode}, expected gray or RGB; convert it") from error


def _eight_bits(image: Any, tags: Any, file: Path) -> NDArray[np.uint8]:
    """Scale gray values of more than 8 bits to 8 bits, from the range that the file declares.

    Raises:
        ClipError: the values are 32-bit integers, whose range is unknown, or floats outside 0 to 1.
    """
    values = np.asarray(image)
    if image.mode == "I":
        raise _range_unknown(file)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            got = f"{_unrounded(low)} to {_unrounded(high)}"
            raise ClipError(f"{file}: got floats from {got}, expected 0 to 1; scale them")
        shades = (values * 255).round().astype(np.uint8)
        return 255 - shades if tags.get(PHOTOMETRIC) == 0 else shades
    largest = (1 << tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
    shades = (values.astype(np.float32) * (255 / largest)).round().clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is 0, which Pillow handles only with 8 bits
        shades = 255 - shades
    clear = image.info.get("transparency")
    return shades if clear is None else np.where(values == clear, 0, shades).astype(np.uint8)


def _unrounded(value: float) -> str:
    """Format a number with three digits, or with more if rounding would move it into [0, 1]."""
    texts = [f"{value:.{digits}g}" for digits in range(3, 18)]
    return next((text for text in texts if (float(text) < 0, float(text) > 1) == (value < 0, value > 1)), texts[-1])


def _range_unknown(file: Path) -> ClipError:
    return ClipError(f"{file}: got 32-bit or signed integers, whose range is unknown; save it with 8 or 16 bits")


def _over_black(image: Any, file: Path, remarks: Remarks | None) -> Any:
    from PIL import Image

    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # undo the multiplication of colours by alpha
    rgba = (image.convert(straight) if straight else image).convert("RGBA")
    if rgba.getextrema()[3][0] == 255:
        return rgba.convert("RGB")
    if remarks is not None:
        say_transparent(file.name, remarks)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _fitted(image: Any, file: Path, form: Form, remarks: Remarks | None, source: Path) -> NDArray[np.uint8]:
    """Return a decoded image in the size and colours of a form, [H, W, C]."""
    mode, stored_mode = _mode(form), image.mode
    picture = _displayed(image, file, remarks)
    shown = (picture.height, picture.width)
    if remarks is not None:
        _remark_look(file, (shown, stored_mode), form, remarks, source)
    placement = fit_shape(shown, form.image_size, form.fit)
    scaled = picture if picture.mode == mode else picture.convert(mode)
    if shown != placement.scaled:  # `resize` would copy the image
        from PIL import Image

        scaled = scaled.resize(placement.scaled[::-1], Image.Resampling.BOX)
    pixels = np.frombuffer(scaled.tobytes(), np.uint8)  # twice as fast as np.asarray for a small picture
    return placement.place(pixels.reshape(*placement.scaled, form.channels))


def _mode(form: Form) -> str:
    return "L" if form.channels == 1 else "RGB"


def _remark_look(file: Path, look: Look, form: Form, remarks: Remarks, source: Path) -> None:
    """Log how pictures of this size and mode are converted, unless the clip already had a picture with both."""
    if not remarks.is_new(clip := str(source), look):
        return
    name, (shown, stored_mode) = source.name, look
    say_change(name, shown, shown, (stored_mode, _mode(form)), form, remarks)
    if (first := remarks.first(clip)[0]) != shown:
        remarks.say("sizes", "%s: sizes differ, %s is %d×%d and the first %d×%d; each picture is fitted to the frame "
                    "on its own", name, file.name, *shown, *first)  # fmt: skip


def _will_swap_sides(image: Any) -> bool:
    """Return True if decoding will swap the height and width that Pillow read from the header."""
    if ORIENTATION_KEYS.isdisjoint(image.info):  # avoid `getexif`, which would decode a PNG to find an orientation
        return False
    is_swapped = image.format == "TIFF" and ORIENTATION in image.tag_v2
    return not is_swapped and image.getexif().get(ORIENTATION, 1) in TURNED


def say_looks(files: Iterable[Path], form: Form, remarks: Remarks, source: Path) -> None:
    """Log how pictures will be converted, as far as their headers show it.

    Unreadable files are ignored, because decoding them will report the error.
    """
    from PIL import Image

    first: dict[Look, Path] = {}
    for file in files:
        with suppress(Exception), file.open("rb") as content, Image.open(content) as image:
            shown = image.size if _will_swap_sides(image) else image.size[::-1]
            first.setdefault((shown, image.mode), file)
    for look, file in first.items():
        _remark_look(file, look, form, remarks, source)


@dataclass(frozen=True, slots=True)
class PictureClip:
    """A clip of pictures in files; slicing the clip decodes the pictures."""

    files: Sequence[Path]
    form: Form
    remarks: Remarks | None = field(default=None, compare=False)
    """Collects remarks on conversions when pictures are read; None: no remarks."""
    source: Path | None = None
    """Folder of the clip, for remarks."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, frames: slice, /) -> NDArray[np.uint8]:
        """
        Raises:
            ClipError: a file is not a picture, or is damaged.
        """
        files = self.files[frames]
        clip = np.empty((len(files), *self.form.shape), np.uint8)
        for frame, file in zip(clip, files, strict=True):
            frame[...] = read_picture(file, self.form, remarks=self.remarks, source=self.source)
        return clip


def play_folder(folder: Path, form: Form, *, remarks: Remarks) -> tuple[Iterator[NDArray[np.uint8]], None]:
    """Return an iterator over the pictures in a folder, and None as their rate, because a folder states none.

    Raises:
        ClipError: the folder has no pictures.
    """
    files = ordered_pictures(folder, remarks)
    if not files and (unread := unread_pictures(os.listdir(folder))):
        raise not_read(folder, unread)
    if not files:
        raise ClipError(
            f"{folder}: holds no pictures ({', '.join(PICTURES)}), {NO_MASKS}; put such files there, or give another "
            "folder or one video"
        )
    names = {file.name for file in files}
    others = [name for name in os.listdir(folder) if is_picture(name) and name[0] != "." and name not in names]
    if others:
        text = "%s: skipped ground truth, %d pictures such as %s"
        remarks.say(f"masks in {folder}", text, folder, len(others), min(others))
    return (read_picture(file, form, remarks=remarks, source=folder) for file in files), None


def play_pages(file: Path, form: Form, *, remarks: Remarks) -> tuple[Iterator[NDArray[np.uint8]], None]:
    """Return an iterator over the pages of a picture file, and None as their rate, because rates are not read."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        # Shortest and longest duration before the current page. The duration of the last page is ignored.
        shown_ms: list[float] = []
        for image in _load_pages(file):
            shown = image.info.get("duration", 0)
            yield _fitted(image, file, form, remarks, file)
            _remark_times(shown_ms, file.name, remarks)
            shown_ms = [min([*shown_ms, shown]), max([*shown_ms, shown])]

    return pictures(), None


def _remark_times(shown_ms: list[float], name: str, remarks: Remarks) -> None:
    """Log if the pages before the current one have different durations."""
    if shown_ms and max(shown_ms) - min(shown_ms) > TOLERANCE * max(shown_ms):
        remarks.say("times", "%s: frame times vary from %.4g to %.4g ms; each page is read as one frame, so "
                    "convert the file to a constant frame rate before use",
                    name, min(shown_ms), max(shown_ms))  # fmt: skip


def say_transparent(name: str, remarks: Remarks) -> None:
    """Log that transparent pixels are shown over black."""
    remarks.say("alpha", "%s: has transparent pixels, which are shown over black", name)
