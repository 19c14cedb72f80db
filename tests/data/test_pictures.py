"""Pictures are read as image viewers display them, or refused with the name of the file."""

import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from e3d_deploy.config import Fit
from e3d_deploy.data.clips import play, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import KTHClip
from e3d_deploy.data.pictures import load_picture, read_picture, say_looks
from e3d_deploy.data.readers import Reader
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.sources import open_source
from e3d_deploy.errors import ClipError
from e3d_deploy.progress import silent

SIZE = (6, 9)
"""Height and width of the pictures (pixels)."""
JPEG_OFF = 4  # gray levels; measured 1.0
ORIENTATIONS: dict[int, Any] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: np.rot90(shown, 2).transpose(1, 0),
    8: lambda shown: np.rot90(shown, -1),
}
"""Return the picture to store for each EXIF orientation, so that image viewers display the given picture."""


def form(size: tuple[int, int] = SIZE, channels: int = 1, fit: Fit = "stretch") -> Form:
    return Form(image_size=size, channels=channels, fit=fit)


def ramp(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a picture that every flip changes."""
    return np.linspace(0, 255, size[0] * size[1]).reshape(size).round().astype(np.uint8)


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(message for _, level, message in caplog.record_tuples if level == logging.WARNING)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied_before_scaling(tmp_path: Path, suffix: str, orientation: int) -> None:
    shown = ramp((48, 72))
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](shown))
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {".webp": {"lossless": True}, ".jpg": {"quality": 100}}.get(suffix, {})
    Image.fromarray(stored).save(tmp_path / f"1{suffix}", exif=exif, **options)
    found = read_picture(tmp_path / f"1{suffix}", form((24, 36)))[..., 0]
    expected = shown.reshape(24, 2, 36, 2).mean(axis=(1, 3))
    assert np.abs(found - expected).max() <= JPEG_OFF
    remarks = Remarks(silent=True)
    say_looks([tmp_path / f"1{suffix}"], form((24, 36)), remarks, tmp_path)
    (text,) = remarks.texts
    assert "48×72" in text


@pytest.mark.parametrize("kind", ["XMP", "Exif behind the pixels"])
def test_an_orientation_is_found_anywhere_in_a_png(tmp_path: Path, kind: str) -> None:
    told = PngInfo()
    if kind == "XMP":
        told.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="3"/>')
    Image.fromarray(np.ascontiguousarray(ramp()[::-1, ::-1])).save(file := tmp_path / "1.png", pnginfo=told)
    if kind != "XMP":
        (exif := Image.Exif())[274] = 3
        content, chunk = file.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        file.write_bytes(content[:-12] + late + content[-12:])  # the last chunk has 12 bytes
    np.testing.assert_array_equal(read_picture(file, form())[..., 0], ramp())


@pytest.mark.parametrize("name", ["1.jpg", "1.webp", "1.png", "1.tif", "both.tif"])
def test_an_orientation_only_in_xmp_is_not_another_size(tmp_path: Path, name: str) -> None:
    text = '<x:xmpmeta tiff:Orientation="6"/>'
    options: dict[str, Any] = {"xmp": text.encode()}
    if name.endswith(".png"):
        (told := PngInfo()).add_itxt("XML:com.adobe.xmp", text)
        options = {"pnginfo": told}
    elif name.endswith(".tif"):
        options = {"tiffinfo": {700: text.encode()} | ({274: 6} if name == "both.tif" else {})}
    Image.fromarray(ramp((48, 72))).save(tmp_path / name, **options)
    assert load_picture(tmp_path / name).size == (48, 72)
    remarks = Remarks(silent=True)
    say_looks([tmp_path / name], form(), remarks, tmp_path)
    read_picture(tmp_path / name, form(), remarks=remarks, source=tmp_path)
    (text,) = remarks.texts
    assert "72×48" in text


def test_size_is_logged_after_turning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(ramp((40, 20))).save(tmp_path / "1.png", exif=exif)
    read_clips(tmp_path, form((10, 20)))
    assert "20×40 L, scaled to 10×20 L" in messages(caplog)


def test_kth_sees_pictures_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(np.ascontiguousarray(ramp()[::-1, ::-1])).save(tmp_path / "1.png", exif=exif)
    clip = KTHClip([tmp_path / "1.png"], SIZE)[0:1]
    np.testing.assert_allclose(clip[0, ..., 0] * 255, ramp(), atol=1e-3)


# Aspect ratio


@pytest.mark.parametrize(
    ("size", "fit", "bright", "remark"),
    [
        ((16, 32), "stretch", (16, 8), "16×32 L, stretched to 16×16 L"),
        ((16, 32), "crop", (16, 16), "16×32 L, cropped to its centre to fill 16×16 L"),
        ((16, 32), "pad", (8, 8), "16×32 L, with black bars around it to fill 16×16 L"),
        ((40, 20), "crop", (16, 8), "40×20 L, cropped"),
        ((40, 20), "pad", (16, 4), "40×20 L, with black bars"),
        ((16, 16), "crop", (16, 8), ""),
    ],
)
def test_fit_decides_how_another_shape_is_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int], fit: Fit, bright: tuple[int, int],
    remark: str,
) -> None:  # fmt: skip
    """The middle half of the width is white."""
    picture = np.zeros(size, np.uint8)
    picture[:, size[1] // 4 : size[1] * 3 // 4] = 255
    Image.fromarray(picture).save(tmp_path / "1.png")
    found = read_clips(tmp_path, form((16, 16), fit=fit)).frames[0, 0, ..., 0] > 127
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert (len(rows), len(columns)) == bright
    assert rows[0] + rows[-1] == columns[0] + columns[-1] == 15  # centred
    assert remark in messages(caplog)
    assert bool(remark) == ("fit" in messages(caplog) or "16×16" in messages(caplog))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_change_of_shape_and_size_is_one_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture, fit: Fit) -> None:
    Image.new("RGB", (64, 32), "white").save(tmp_path / "1.png")
    read_picture(tmp_path / "1.png", form((16, 16), fit=fit), remarks=Remarks(), source=Path("walk"))
    (message,) = [message for _, _, message in caplog.record_tuples]
    assert message.startswith("walk: 32×64 RGB, ")
    assert "16×16 L" in message


# Transparency

CLEAR = np.zeros(SIZE, bool)
CLEAR[:, :3] = True


def transparent(mode: str) -> Any:
    """Return a picture of one gray whose left third is white and transparent."""
    gray = np.where(CLEAR, 255, 200).astype(np.uint8)
    alpha = np.where(CLEAR, 0, 255).astype(np.uint8)
    if mode == "P":
        image = Image.fromarray(np.where(CLEAR, 0, 1).astype(np.uint8)).convert("P")
        image.putdata(np.where(CLEAR, 0, 1).reshape(-1).tolist())
        image.putpalette([255, 255, 255, 200, 200, 200])
        return image
    channels = [gray, alpha] if mode == "LA" else [gray, gray, gray, alpha]
    return Image.fromarray(np.stack(channels, axis=-1))


@pytest.mark.parametrize(
    ("mode", "suffix", "options"),
    [
        ("RGBA", ".png", {}),
        ("LA", ".png", {}),
        ("P", ".png", {"transparency": 0}),
        ("P", ".png", {"transparency": bytes([0, 255])}),
        ("RGBA", ".webp", {"lossless": True}),
        ("RGBA", ".tif", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_shown_over_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, suffix: str, options: dict[str, Any], channels: int
) -> None:
    for name in ("1", "2"):
        transparent(mode).save(tmp_path / f"{name}{suffix}", **options)
    frames = read_clips(tmp_path, form(channels=channels)).frames[0]
    assert (frames == np.where(CLEAR, 0, 200)[:, :, None]).all()
    assert messages(caplog).count("has transparent pixels, which are shown over black") == 1


def test_an_opaque_alpha_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = np.dstack([ramp()] * 3 + [np.full(SIZE, 255, np.uint8)])
    Image.fromarray(picture).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_clips(tmp_path, form(channels=3)).frames[0, 0], picture[..., :3])
    assert "transparent" not in messages(caplog)


def test_a_transparent_value_of_16_bits_is_black(tmp_path: Path) -> None:
    values = np.where(CLEAR, 65535, 257 * 100).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    with Image.open(tmp_path / "1.png") as image:
        image.info["transparency"] = 65535
        image.save(tmp_path / "2.png", transparency=65535)
    assert content != (tmp_path / "2.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(load_picture(tmp_path / "2.png")), np.where(CLEAR, 0, 100))


def test_a_transparent_colour_of_16_bits_is_black(tmp_path: Path) -> None:
    values = np.where(CLEAR[..., None], (60000, 50000, 40000), 257 * 100).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">HHH", 60000, 50000, 40000)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(np.asarray(load_picture(tmp_path / "1.png"))[..., 0], np.where(CLEAR, 0, 100))


# Range of values


def test_floats_of_0_to_1_keep_their_range(tmp_path: Path) -> None:
    values = (ramp() / 255).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "1.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif", form())[..., 0], ramp())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 255]]), "got floats from 0 to 255, expected 0 to 1; scale them"),
        (np.float32([[0, 1.0001]]), "got floats from 0 to 1.0001, expected 0 to 1"),
        (np.float32([[-1, 1]]), "got floats from -1 to 1"),
        (np.float32([[np.nan, 1]]), "got floats from nan"),
        (np.int32([[0, 70000]]), "32-bit or signed integers, whose range is unknown; save it with 8 or 16"),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    Image.fromarray(values).save(tmp_path / "1.tif")
    with pytest.raises(ClipError, match=message):
        read_picture(tmp_path / "1.tif", form())


def tiff(values: bytes, size: tuple[int, int], *, bits: int, photometric: int, order: str = "<") -> bytes:
    """Return an uncompressed TIFF of one gray channel."""
    tags = {256: size[1], 257: size[0], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: size[0],
            279: len(values)}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" if order == "<" else b"MM\0*"
    return (
        head
        + struct.pack(f"{order}I", 8 + len(values))
        + values
        + struct.pack(f"{order}H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_both_byte_orders_are_divided(tmp_path: Path, order: str) -> None:
    values = (ramp().astype(np.uint16) * 257).astype(f"{order}u2")
    (tmp_path / "1.tif").write_bytes(tiff(values.tobytes(), SIZE, bits=16, photometric=1, order=order))
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif", form())[..., 0], ramp())


def test_white_as_0_is_inverted_with_16_bits(tmp_path: Path) -> None:
    values = 65535 - ramp().astype("<u2") * 257
    (tmp_path / "1.tif").write_bytes(tiff(values.astype("<u2").tobytes(), SIZE, bits=16, photometric=0))
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif", form())[..., 0], ramp())


def test_white_as_0_is_inverted_with_floats(tmp_path: Path) -> None:
    values = np.float32(1) - ramp().astype(np.float32) / 255
    Image.fromarray(values).save(tmp_path / "1.tif")
    content = (tmp_path / "1.tif").read_bytes()
    assert content.count(struct.pack("<HHIHH", 262, 3, 1, 1, 0)) == 1
    swapped = content.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    (tmp_path / "1.tif").write_bytes(swapped)
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif", form())[..., 0], ramp())


def test_signed_bytes_are_refused(tmp_path: Path) -> None:
    content = bytearray(tiff(ramp().tobytes(), SIZE, bits=8, photometric=1))
    start = 8 + ramp().size
    content[start : start + 2] = struct.pack("<H", 10)
    content[-4:-4] = struct.pack("<HHII", 339, 3, 1, 2)
    (tmp_path / "1.tif").write_bytes(content)
    with pytest.raises(ClipError, match="or signed integers, whose range is unknown"):
        read_picture(tmp_path / "1.tif", form())


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_value_of_few_bits_is_black(tmp_path: Path, bits: int) -> None:
    """The picture has two pixels, a transparent gray one and a white one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    white, gray = (1 << bits) - 1, 2
    row = (gray << 8 - bits) | (white << 8 - 2 * bits)
    (tmp_path / "1.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", gray))
        + chunk(b"IDAT", zlib.compress(bytes([0, row])))
        + chunk(b"IEND", b"")
    )
    assert read_picture(tmp_path / "1.png", form((1, 2))).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_of_black_and_white_is_read_correctly_or_refused(tmp_path: Path, bits: int) -> None:
    """Pillow reads the pixels as single bits, whatever depth the file declares."""
    mask = ramp((8, 16)) % 2
    rows = np.packbits((mask[..., None] >> np.arange(bits - 1, -1, -1) & 1).reshape(8, -1), axis=1)
    stored = b"".join(row.tobytes() + bytes(-len(row) % 4) for row in rows[::-1])
    head = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, bits, 0, len(stored), 0, 0, 2, 0) + bytes(4) + b"\xff\xff\xff\0"
    (tmp_path / "1.bmp").write_bytes(struct.pack("<2sIII", b"BM", 62 + len(stored), 0, 62) + head + stored)
    if bits > 1:
        with pytest.raises(ClipError, match="misreads its black-and-white palette; save it as gray or as PNG"):
            load_picture(tmp_path / "1.bmp")
    else:
        np.testing.assert_array_equal(np.asarray(load_picture(tmp_path / "1.bmp")), mask * 255)


def test_12_bits_are_scaled_by_the_declared_depth(tmp_path: Path) -> None:
    first, second = 4095, 2048
    packed = bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    (tmp_path / "1.tif").write_bytes(tiff(packed, (1, 2), bits=12, photometric=1))
    assert read_picture(tmp_path / "1.tif", form((1, 2))).reshape(-1).tolist() == [255, 128]


@pytest.mark.parametrize(
    "values",
    [
        np.uint8(np.arange(54).reshape(SIZE) % 2),
        np.uint16(np.arange(54).reshape(SIZE) * 75),
        np.full(SIZE, 9, np.uint8),
    ],
)
def test_a_source_within_a_tenth_of_the_range_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: NDArray[Any]
) -> None:
    for name in ("1.png", "2.png"):
        Image.fromarray(values).save(tmp_path / name)
    read_clips(tmp_path, form())
    assert messages(caplog).count("in 2 frames, less than a tenth of the range") == 1
    caplog.clear()
    open_source(str(tmp_path), form(), split="train", length=1)
    assert messages(caplog).count("less than a tenth of the range") == 1


def test_masks_of_one_bit_use_the_whole_range(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.arange(54).reshape(SIZE) % 2 == 0
    Image.fromarray(mask).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_clips(tmp_path, form()).frames[0, 0, ..., 0], np.where(mask, 255, 0))
    assert messages(caplog) == ""


# Pages


@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
def test_every_page_of_a_file_is_a_frame(tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(np.stack([np.full(SIZE, level, np.uint8)] * 3, -1)) for level in (0, 100, 200)]
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    pages[0].save(tmp_path / f"stack{suffix}", save_all=True, append_images=pages[1:], **options)
    frames = np.stack(list(play(tmp_path / f"stack{suffix}", form()).pictures))
    assert frames[:, 0, 0, 0].tolist() == [0, 100, 200]
    with pytest.raises(ClipError, match="has 3 pages, but a picture in a folder is one frame; give the file itself"):
        read_clips(tmp_path, form())
    with pytest.raises(ClipError, match="has 3 pages"):
        Reader(form=form(), skip_bad=False, progress=silent).open(tmp_path)
    [(_, clip)] = Reader(form=form(), skip_bad=False, progress=silent).open(tmp_path / f"stack{suffix}")
    assert len(clip) == 3


@pytest.mark.parametrize(("durations", "said"), [([100, 400, 100], 1), ([100, 100, 400], 0)])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_uneven_times_of_pages_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, durations: list[int], said: int
) -> None:
    """The time of the last page does not count, because no page follows it."""
    pages = [Image.fromarray(np.stack([np.full(SIZE, level, np.uint8)] * 3, -1)) for level in (0, 100, 200)]
    pages[0].save(tmp_path / f"film{suffix}", save_all=True, append_images=pages[1:], duration=durations)
    assert len(list(play(tmp_path / f"film{suffix}", form()).pictures)) == 3
    assert messages(caplog).count("frame times vary from 100 to 400 ms") == said


@pytest.mark.parametrize(
    ("description", "pages", "reason"),
    [
        (
            "ImageJ=1.53\nimages=6\nslices=6\nloop=false\n",
            1,
            "ImageJ states 6 images, but the number of pages is 1; save",
        ),
        ("ImageJ=1.53\nimages=4\nchannels=2\nframes=2\n", 4, "got pages for 2 channels, 2 frames"),
        ("ImageJ=1.53\nimages=4\nslices=2\nframes=2\n", 4, "got pages for 2 slices, 2 frames"),
        ('<OME><Pixels SizeC="2" SizeT="2" SizeZ="1"/></OME>', 4, "got pages for 2 channels, 2 frames"),
        ('{"shape": [2, 2, 6, 9]}', 4, "got pages for axes of length 2 and 2"),
        ('{"shape": [6, 6, 9], "truncated": true}', 1, "but the number of pages is 1; write it without `truncate`"),
        ("ImageJ=1.53\nimages=4\nslices=4\n", 4, None),
        ('<OME><Pixels SizeC="1" SizeT="4" SizeZ="1"/></OME>', 4, None),
        ('<OME><Pixels SizeC="2" SizeT="40" SizeZ="1"/></OME>', 1, None),  # one of several files: each has 80 pages
        ('{"shape": [4, 6, 9]}', 4, None),
        ("walk", 4, None),
    ],
)
def test_pages_that_are_not_frames_of_one_clip_are_refused(
    tmp_path: Path, description: str, pages: int, reason: str | None
) -> None:
    first, *others = [Image.fromarray(ramp()) for _ in range(pages)]
    file = tmp_path / "stack.tif"
    first.save(file, save_all=True, append_images=others, tiffinfo={270: description})
    if reason is None:
        assert len(list(play(file, form()).pictures)) == pages
        return
    with pytest.raises(ClipError, match=re.escape(reason)):
        list(play(file, form()).pictures)
    with pytest.raises(ClipError, match=re.escape(reason)):
        read_picture(file, form())


def test_the_default_image_of_an_animated_png_is_not_a_frame(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.stack([np.full(SIZE, level, np.uint8)] * 3, -1)) for level in (0, 100, 200)]
    pages[0].save(tmp_path / "film.png", save_all=True, append_images=pages[1:], default_image=True)
    frames = np.stack(list(play(tmp_path / "film.png", form()).pictures))
    assert frames[:, 0, 0, 0].tolist() == [100, 200]


def test_frames_of_an_animated_png_are_blended_over_earlier_ones(tmp_path: Path) -> None:
    """A white square moves over a background, which each frame restores."""
    pages = [Image.new("RGBA", (9, 6), (0, 0, 0, 255))]
    for left in (0, 3, 6):
        page = Image.new("RGBA", (9, 6))
        page.paste((255, 255, 255, 255), (left, 0, left + 3, 3))
        pages.append(page)
    pages[0].save(tmp_path / "film.png", save_all=True, append_images=pages[1:], disposal=2, blend=1, duration=100)
    video = play(tmp_path / "film.png", form())
    assert video.rate == 10
    assert [int((picture > 127).sum()) for picture in video.pictures] == [0, 9, 9, 9]


def test_an_animated_png_of_one_bit_is_played(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full(SIZE, level)) for level in (False, True)]
    pages[0].save(tmp_path / "film.png", save_all=True, append_images=pages[1:])
    assert [picture.max() for picture in play(tmp_path / "film.png", form()).pictures] == [0, 255]


def test_a_reduced_copy_in_a_file_is_not_a_page(tmp_path: Path) -> None:
    copy = Image.fromarray(ramp((3, 4)))
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(ramp()).save(tmp_path / "1.tif", save_all=True, append_images=[copy])
    with Image.open(tmp_path / "1.tif") as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif", form())[..., 0], ramp())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_picture_that_is_cut_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"1{suffix}")
    content = (tmp_path / f"1{suffix}").read_bytes()
    (tmp_path / f"1{suffix}").write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(ClipError, match="not a picture that can be read"):
        read_picture(tmp_path / f"1{suffix}", form())


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_pixels_of_a_png_with_a_wrong_checksum_are_refused(tmp_path: Path, place: float) -> None:
    """Pillow shows zeros in the compressed data as black, or as the earlier content of its memory."""
    Image.fromarray(ramp((40, 60))).save(tmp_path / "1.png")
    content = bytearray((tmp_path / "1.png").read_bytes())
    begin, end = content.index(b"IDAT") + 4, content.index(b"IEND") - 8
    hole = begin + int((end - begin) * place)
    content[hole : hole + 4] = bytes(4)
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(ClipError, match="the checksum of its pixels is wrong"):
        read_picture(tmp_path / "1.png", form())


def test_frames_of_an_animated_png_with_a_wrong_checksum_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(ramp((40, 60)), shift)) for shift in range(3)]
    for name in ("film.png", "film.apng"):
        pages[0].save(tmp_path / name, format="PNG", save_all=True, append_images=pages[1:])
        content = bytearray((tmp_path / name).read_bytes())
        content[content.index(b"fdAT") + 20] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match="the checksum of a frame is wrong"):
            play(tmp_path / name, form())


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda content: content[: [*re.finditer(b"fcTL", content)][1].start() - 4], "broke off after 1 of 3 frames"),
        (lambda content: content[:-12], "its end mark is missing"),
    ],
)
def test_an_animated_png_that_ends_between_its_parts_is_refused(
    tmp_path: Path, cut: Callable[[bytes], bytes], reason: str
) -> None:
    pages = [Image.fromarray(np.roll(ramp((40, 60)), shift)) for shift in range(3)]
    pages[0].save(tmp_path / "film.png", save_all=True, append_images=pages[1:])
    (tmp_path / "film.png").write_bytes(cut((tmp_path / "film.png").read_bytes()))
    with pytest.raises(ClipError, match=f"{reason}; copy or export it again"):
        play(tmp_path / "film.png", form())


@pytest.mark.parametrize(
    ("bits", "colours", "clear", "left", "reason"),
    [
        (2, 0, b"\0\0", 0, "a transparent 2-bit gray, which FFmpeg ignores; save it with 8 bits"),
        (4, 0, b"\0\0", 0, "a transparent 4-bit gray, which FFmpeg ignores"),
        (2, 0, b"", 1, "2-bit frames that do not begin at the left edge, which FFmpeg misplaces; save it with 8 bits"),
        (1, 3, b"\0", 1, "1-bit frames that do not begin at the left"),
        (2, 0, b"", 0, None),
        (4, 3, b"\0", 0, None),
        (8, 3, b"\0", 1, None),
        (8, 0, b"\0\0", 1, None),
    ],
)
def test_an_animated_png_is_played_correctly_or_refused(
    tmp_path: Path, bits: int, colours: int, clear: bytes, left: int, reason: str | None
) -> None:
    """The first frame has two white pixels; the second makes one of them black."""
    white = (1 << bits) - 1
    row = np.packbits(np.uint8([white, white])[:, None] >> np.arange(bits - 1, -1, -1) & 1).tobytes()
    palette = bytes(3) + bytes([255] * 3 * white)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colours, 0, 0, 0)),
        (b"acTL", struct.pack(">II", 2, 0)),
        *([(b"PLTE", palette)] if colours == 3 else []),
        *([(b"tRNS", clear)] if clear else []),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 2, 1, 0, 0, 1, 10, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 1, 1, 1, left, 0, 1, 10, 0, 0)),
        (b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(2))),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (tmp_path / "film.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    if reason is not None:
        with pytest.raises(ClipError, match=reason):
            play(tmp_path / "film.png", form((1, 2)))
        return
    first, second = play(tmp_path / "film.png", form((1, 2))).pictures
    assert first.ravel().tolist() == [255, 255]
    assert second.ravel().tolist() == [0 if left == 0 else 255, 0 if left else 255]


def test_chunks_after_the_pixels_of_a_png_may_be_damaged(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[:-12] + struct.pack(">I4s3sI", 3, b"tEXt", b"a\0b", 0) + content[-12:])
    np.testing.assert_array_equal(read_picture(tmp_path / "1.png", form())[..., 0], ramp())


@pytest.mark.parametrize("error", [TypeError("missing"), struct.error("short"), KeyError(258), EOFError()])
def test_any_exception_of_a_decoder_becomes_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> None:
        raise error

    Image.fromarray(ramp()).save(tmp_path / "1.tif")
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", fail)
    for read in (
        lambda: read_picture(tmp_path / "1.tif", form()),
        lambda: list(play(tmp_path / "1.tif", form()).pictures),
    ):
        with pytest.raises(ClipError, match=r"1.tif: not a picture that can be read \(.+\); check the file"):
            read()
    reader = Reader(form=form(), skip_bad=True, progress=silent)
    assert reader.open(tmp_path / "1.tif") == []
    assert len(reader.skipped) == 1


# Folders


def test_every_reader_remarks_on_an_ambiguous_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("f_1.25.png", "f_1.5.png"):
        Image.fromarray(ramp()).save(tmp_path / name)
    text = (
        f"{tmp_path}: numbers with a point are read as decimals: f_1.25.png comes before f_1.5.png; rename the files if"
    )
    for read in (lambda: list(play(tmp_path, form()).pictures), lambda: read_clips(tmp_path, form())):
        caplog.clear()
        read()
        assert messages(caplog).count(text) == 1


@pytest.mark.parametrize("name", ["1_gt.png", ".1.png", "notes.txt"])
def test_a_folder_without_frames_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    Image.fromarray(ramp()).save(tmp_path / name, format="PNG")
    for read in (
        lambda: play(tmp_path, form()),
        lambda: read_clips(tmp_path, form()),
        lambda: open_source(str(tmp_path), form(), split="train", length=1),
        lambda: Reader(form=form(), skip_bad=False, progress=silent).open(tmp_path),
    ):
        with pytest.raises(ClipError, match=r"holds no .*; put such files there, or give another folder"):
            read()


def test_ground_truth_next_to_frames_is_not_a_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.png", "2.png", "1_GT.png", "2_mask.png", ".2.png"):
        Image.fromarray(ramp()).save(tmp_path / name)
    assert len(list(play(tmp_path, form()).pictures)) == len(read_clips(tmp_path, form()).clips[0]) == 2
    assert f"{tmp_path}: skipped ground truth, 2 pictures such as 1_GT.png" in messages(caplog)


def test_a_picture_of_another_size_is_logged_at_any_position(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        size = (12, 6) if number == 2 else (6, 12)
        Image.fromarray(ramp(size)).save(tmp_path / f"{number}.png")
    text = f"{tmp_path.name}: sizes differ, 2.png is 12×6 and the first 6×12"
    for read in (
        lambda: list(play(tmp_path, form((6, 12))).pictures),
        lambda: read_clips(tmp_path, form((6, 12))).frames,
        lambda: open_source(str(tmp_path), form((6, 12)), split="train", length=1).clips[0][:],
    ):
        caplog.clear()
        read()
        assert messages(caplog).count(text) == 1
        assert messages(caplog).count("12×6 L, stretched to 6×12 L") == 1


def test_a_picture_of_another_size_is_logged_on_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The workers that read the picture in training log nothing."""
    for number in range(7):
        Image.fromarray(ramp((12, 6) if number == 2 else (6, 12))).save(tmp_path / f"{number}.png")
    Reader(form=form((6, 12)), skip_bad=False, progress=silent).open(tmp_path)
    assert "sizes differ, 2.png is 12×6" in messages(caplog)


def test_copies_of_remarks_in_workers_are_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remarks = Remarks()
    monkeypatch.setattr("os.getpid", lambda: -1)
    remarks.say("alpha", "%s: has transparent pixels", "1.png")
    assert remarks.texts == ["1.png: has transparent pixels"]
    assert messages(caplog) == ""


def test_clips_of_different_sizes_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, size in (("a", (6, 12)), ("b", (12, 6))):
        (tmp_path / folder / "rgb").mkdir(parents=True)
        for number in range(2):
            Image.fromarray(ramp(size)).save(tmp_path / folder / "rgb" / f"{number}.png")
    assert read_clips(tmp_path, form()).frames.shape[0] == 2
    assert "sizes differ" not in messages(caplog)


def test_one_transparent_picture_is_logged_at_any_position(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        (transparent("LA") if number == 2 else Image.fromarray(ramp())).save(tmp_path / f"{number}.png")
    assert read_clips(tmp_path, form()).frames.shape[1] == 7
    assert messages(caplog).count("2.png: has transparent pixels") == 1


@pytest.mark.parametrize(
    ("values", "got"), [([0.5, 1.0001], "0.5 to 1.0001"), ([-1e-9, 1], "-1e-09 to 1"), ([0, 255], "0 to 255")]
)
def test_the_range_of_floats_is_not_rounded_into_the_allowed_one(tmp_path: Path, values: list[float], got: str) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "1.tif")
    with pytest.raises(ClipError, match=f"got floats from {got}, expected 0 to 1"):
        load_picture(tmp_path / "1.tif")


def test_jfif_is_a_picture(tmp_path: Path) -> None:
    for name in ("1.jfif", "2.JFIF"):
        Image.fromarray(ramp()).save(tmp_path / name, format="JPEG")
    assert len(read_clips(tmp_path, form()).clips[0]) == 2


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "1.pgm"])
def test_pictures_in_unsupported_formats_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (tmp_path / name).touch()
    text = rf"holds pictures in a format that is not supported \({name}, 1 in all\); convert them to PNG or JPEG"
    for read in (
        lambda: play(tmp_path, form()),
        lambda: read_clips(tmp_path, form()),
        lambda: open_source(str(tmp_path), form(), split="train", length=1),
    ):
        with pytest.raises(ClipError, match=text):
            read()
    Image.fromarray(ramp()).save(tmp_path / "2.png")
    assert len(list(play(tmp_path, form()).pictures)) == 1
    assert f"skipped pictures in a format that is not supported, 1 such as {name}; convert them" in messages(caplog)


@pytest.mark.parametrize("foreign", ["@eaDir", "#recycle", "__MACOSX", "lost+found"])
def test_folders_that_operating_systems_add_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, foreign: str
) -> None:
    (tmp_path / "walk" / foreign / "1.png").mkdir(parents=True)
    Image.fromarray(ramp()).save(tmp_path / "walk" / foreign / "1.png" / "THUMB_M.png")
    Image.fromarray(ramp()).save(tmp_path / "walk" / "1.png")
    assert len(read_clips(tmp_path, form()).clips) == 1
    assert f"skipped files and folders without clips: walk/{foreign}" in messages(caplog)
