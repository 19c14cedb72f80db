"""TIFF files are read correctly or refused, in each layout that Pillow supports."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import load_picture
from e3d_deploy.data.play import play
from e3d_deploy.errors import ClipError

H, W = 6, 8
COLOURS = np.random.default_rng(0).integers(0, 256, (H, W, 4), dtype=np.uint8)
RAW, DEFLATE = 1, 8
GRAY, RGB, PALETTE, YCBCR, LAB = 1, 2, 3, 6, 8
YCBCR_OFF = 4  # gray levels; measured 3
PLANES_MISREAD = "misreads its separate planes of colours; save it with interleaved colours"


def tiff(
    parts: Sequence[NDArray[np.generic]], tags: dict[int, Sequence[int]], *, deflate: bool = False, order: str = "<"
) -> bytes:
    """Return a TIFF of one page from the pixels of its strips or planes."""
    content = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    stored = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    stored = [zlib.compress(part) for part in stored] if deflate else stored
    places = []
    for part in stored:
        places.append(len(content))
        content += part + bytes(len(part) % 2)
    tags = {256: [W], 257: [H], 259: [DEFLATE if deflate else RAW], 273: places, 278: [H],
            279: [len(part) for part in stored]} | tags  # fmt: skip
    entries = b""
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            value, content = struct.pack(f"{order}I", len(content)), content + value
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + value
    content[4:8] = struct.pack(f"{order}I", len(content))
    return bytes(content) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def rgb(file: Path) -> NDArray[np.uint8]:
    return np.asarray(load_picture(file).convert("RGB"))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257)])
@pytest.mark.parametrize("colours", [3, 4])
def test_separate_planes_are_read_correctly_or_refused(
    tmp_path: Path, colours: int, bits: int, scale: int, deflate: bool, order: str
) -> None:
    values = COLOURS[..., :colours].astype(f"u{bits // 8}") * scale
    tags = {258: [bits] * colours, 262: [RGB], 277: [colours], 284: [2]} | ({338: [2]} if colours == 4 else {})
    file = tmp_path / "1.tif"
    file.write_bytes(tiff(list(np.moveaxis(values, 2, 0)), tags, deflate=deflate, order=order))
    if bits == 16 and not deflate:
        with pytest.raises(ClipError, match=PLANES_MISREAD):
            rgb(file)
        return
    alpha = COLOURS[..., 3:] / 255 if colours == 4 else 1
    assert np.abs(rgb(file) - COLOURS[..., :3] * alpha).max() <= 1


@pytest.mark.parametrize(
    ("planes", "tags"),
    [
        (2, {262: [GRAY], 338: [2]}),
        (2, {262: [PALETTE], 338: [2], 320: [257 * (n % 256) for n in range(768)]}),
        (4, {262: [RGB]}),  # alpha without a tag for it
        (3, {262: [LAB]}),
        (1, {262: [0]}),
    ],
)
def test_separate_planes_that_lose_a_colour_are_refused(
    tmp_path: Path, planes: int, tags: dict[int, Sequence[int]]
) -> None:
    parts = list(np.moveaxis(COLOURS[..., :planes], 2, 0))
    tags = {258: [8] * planes, 277: [planes], 284: [2]} | tags
    (tmp_path / "1.tif").write_bytes(tiff(parts, tags, deflate=planes > 1))
    with pytest.raises(ClipError, match=PLANES_MISREAD):
        rgb(tmp_path / "1.tif")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
def test_floats_are_read_correctly_or_refused(tmp_path: Path, order: str, deflate: bool) -> None:
    """In the wrong byte order 0 and 1 become floats of almost 0."""
    mask = (COLOURS[..., 0] > 127).astype(np.float32)
    (tmp_path / "1.tif").write_bytes(tiff([mask], {258: [32], 262: [GRAY], 339: [3]}, deflate=deflate, order=order))
    if order == ">" and deflate:
        with pytest.raises(ClipError, match="misreads its floats in big-endian byte order"):
            rgb(tmp_path / "1.tif")
    else:
        np.testing.assert_array_equal(rgb(tmp_path / "1.tif")[..., 0], mask * 255)


@pytest.mark.parametrize("subsampling", [None, (2, 2), (1, 1)])
def test_subsampled_colours_without_compression_are_refused(
    tmp_path: Path, subsampling: tuple[int, int] | None
) -> None:
    """Without a tag the colours count as subsampled."""
    tags: dict[int, Sequence[int]] = {258: [8] * 3, 262: [YCBCR], 277: [3]}
    colours = np.asarray(Image.fromarray(COLOURS[..., :3]).convert("YCbCr"))
    (tmp_path / "1.tif").write_bytes(tiff([colours], tags | ({530: subsampling} if subsampling else {})))
    if subsampling == (1, 1):
        assert np.abs(rgb(tmp_path / "1.tif") - COLOURS[..., :3].astype(int)).max() <= YCBCR_OFF
        return
    with pytest.raises(ClipError, match="misreads subsampled YCbCr without compression; save it as RGB"):
        rgb(tmp_path / "1.tif")


@pytest.mark.parametrize(("scale", "is_read"), [(257, True), (1, False), (0, True)])
def test_a_palette_of_8_bits_is_refused(tmp_path: Path, scale: int, is_read: bool) -> None:
    """Other readers scale such a palette, Pillow shows it as black."""
    palette = np.random.default_rng(1).integers(0, 256, (3, 256))
    tags = {258: [8], 262: [PALETTE], 320: (palette * scale).ravel().tolist()}
    (tmp_path / "1.tif").write_bytes(tiff([COLOURS[..., 0]], tags))
    if is_read:
        expected = palette.T[COLOURS[..., 0]] * (scale > 0)
        np.testing.assert_array_equal(rgb(tmp_path / "1.tif"), expected)
        return
    with pytest.raises(ClipError, match="misreads its palette, which has 8 bits"):
        rgb(tmp_path / "1.tif")


def stack() -> bytes:
    """Return three pages as Pillow writes them, the tags of each before its pixels."""
    pages = [Image.fromarray(np.roll(COLOURS[..., :3], shift)) for shift in range(3)]
    pages[0].save(file := io.BytesIO(), "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def tags_behind_pixels(order: str = "<", *, big: bool = False) -> bytes:
    """Return three gray pages, the tags of each after its pixels, as libtiff writes them."""
    number, offset = ("Q", "Q") if big else ("H", "I")
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(f"{order}HHHQ", 43, 8, 0, 0) if big else struct.pack(f"{order}HI", 42, 0)
    link, size = 8 if big else 4, struct.calcsize(f"{order}{offset}")
    for _ in range(3):
        pixels = len(content)
        content += COLOURS[..., 0].tobytes()
        content[link : link + size] = struct.pack(f"{order}{offset}", len(content))
        tags = {256: W, 257: H, 258: 8, 259: 1, 262: 1, 273: pixels, 278: H, 279: W * H, 284: 1, 305: 0}
        entries = (struct.pack(f"{order}HH{offset}{offset}", tag, 4, 1, value) for tag, value in tags.items())
        content += struct.pack(f"{order}{number}", len(tags)) + b"".join(entries)
        link = len(content)
        content += bytes(size)
    return bytes(content)


@pytest.mark.parametrize(
    "content", [stack(), tags_behind_pixels(), tags_behind_pixels(">"), tags_behind_pixels(big=True)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some cuts
def test_a_stack_that_is_cut_anywhere_loses_no_frame(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "1.tif"
    file.write_bytes(content)
    assert frames(file) == 3
    for end in range(0, len(content), 2):
        file.write_bytes(content[:end])
        try:
            assert frames(file) == 3  # after the last page Pillow writes zeros
        except ClipError:
            continue


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stack_whose_tags_end_in_zeros_is_refused(tmp_path: Path) -> None:
    content, file = tags_behind_pixels(), tmp_path / "1.tif"
    second = content.index(struct.pack("<HHII", 279, 4, 1, W * H), len(content) // 2)
    file.write_bytes(content[: second + 12] + bytes(len(content) - second - 12))
    with pytest.raises(ClipError, match="the tags of a page are cut off"):
        frames(file)


@pytest.mark.parametrize("head", [b"II*\0", b"II\0*"])
def test_headers_that_pillow_supports_are_read(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "1.tif").write_bytes(head + tags_behind_pixels()[4:])
    assert frames(tmp_path / "1.tif") == 3


def test_a_number_of_tags_beyond_memory_is_refused(tmp_path: Path) -> None:
    content = bytearray(tags_behind_pixels(big=True))
    content[16 + W * H : 24 + W * H] = struct.pack("<Q", 1 << 50)
    (tmp_path / "1.tif").write_bytes(content)
    with pytest.raises(ClipError):
        frames(tmp_path / "1.tif")


def frames(file: Path) -> int:
    return len(list(play(file, Form(image_size=(H, W), channels=1, fit="stretch")).pictures))
