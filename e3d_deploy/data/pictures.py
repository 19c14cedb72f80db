"""Pictures in files, and folders of them as clips. Needs no PyTorch; Pillow when a picture is read."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.errors import BackendUnavailable, ClipError
from e3d_deploy.libraries import pip_install

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
NEEDS_VIDEO = f"reading videos and pictures needs the extra `video`: {pip_install('video')}"


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, frame_2 before frame_10; hidden files are none."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    return sorted(files, key=natural)


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def load_picture(file: Path) -> Any:
    """A picture as Pillow decodes it, whole.

    Raises:
        ClipError: it is none, or damaged.
        BackendUnavailable: without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    try:
        with Image.open(file) as image:
            image.load()
            return image
    # Pillow's readers of damaged files: SyntaxError for a chunk of PNG, ValueError for a size.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClipError(f"{file}: not a picture ({error})") from error


def read_picture(file: Path, form: Form, *, say_as: Path | None = None) -> NDArray[np.uint8]:
    """A picture [H, W, C], scaled by averaging and converted as a model wants, which is logged for `say_as`.

    Raises:
        ClipError, BackendUnavailable: as `load_picture`.
    """
    from_file = load_picture(file)
    from PIL import Image

    height, width = form.image_size
    mode = "L" if form.channels == 1 else "RGB"
    if say_as is not None:
        say_change(say_as, (from_file.height, from_file.width), from_file.mode, form.image_size, mode)
    # 16 bits would be clipped to 8 where they should be divided.
    deep = from_file.mode.startswith("I;16")
    image = Image.fromarray((np.asarray(from_file) / 257).round().astype(np.uint8)) if deep else from_file
    picture = np.asarray(image.convert(mode).resize((width, height), Image.Resampling.BOX))
    return picture.reshape(form.shape)


@dataclass(frozen=True, slots=True)
class PictureClip:
    """A clip of pictures in files, decoded when it is read."""

    files: Sequence[Path]
    form: Form

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, frames: slice, /) -> NDArray[np.uint8]:
        """
        Raises:
            ClipError: a file that is no picture, or damaged.
        """
        files = self.files[frames]
        clip = np.empty((len(files), *self.form.shape), np.uint8)
        for frame, file in zip(clip, files, strict=True):
            frame[...] = read_picture(file, self.form)
        return clip


def play_folder(folder: Path, form: Form, *, say: bool) -> tuple[Iterator[NDArray[np.uint8]], None]:
    """Return the pictures in a folder one by one, and their rate, which a folder does not tell.

    Raises:
        ClipError: it holds none.
    """
    files = picture_files(folder)
    if not files:
        raise ClipError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for number, file in enumerate(files):
            say_as = folder if number == 0 and say else None
            yield read_picture(file, form, say_as=say_as)

    return pictures(), None


def say_change(path: Path, size: tuple[int, int], colours: str, wanted: tuple[int, int], mode: str) -> None:
    """Log that pictures are scaled or converted."""
    gray = mode in ("L", "gray")
    if size != wanted:
        log.warning("%s: %d×%d %s, scaled to %d×%d %s", path.name, *size, colours, *wanted, mode)
    elif gray != colours.startswith(("gray", "L", "I;16")):
        log.warning("%s: %s, converted to %s", path.name, colours, "gray" if gray else "colour")
