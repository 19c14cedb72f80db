"""Recognize TIFF files that Pillow (13.0) misreads without an error. Needs no PyTorch."""

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANES = 258, 259, 262, 284
PALETTE, EXTRA_SAMPLES, SUBSAMPLING = 320, 338, 530
"""Tags of a page."""
RAW, SEPARATE, WHITE_IS_0, YCBCR = 1, 2, 0, 6
"""Values of the tags `COMPRESSION`, `PLANES` and `PHOTOMETRIC`."""
BIG = b"+"
"""Byte in the header of a BigTIFF, whose offsets have 8 bytes."""
MAX_TAGS = 65535
"""Maximum number of tags of a page in a classic TIFF; a larger number means damage, also in a BigTIFF."""


def why_misread(tags: Mapping[int, Any], mode: str, *, is_big_endian: bool) -> str | None:
    """Return why Pillow decodes wrong pixels from a page, and a remedy; None if it decodes the page correctly.

    Args:
        tags: tags of the page.
        mode: mode of the page in Pillow.
        is_big_endian: True if the file stores the most significant byte first.
    """
    is_raw, is_separate = tags.get(COMPRESSION, RAW) == RAW, tags.get(PLANES) == SEPARATE
    if is_separate and _misreads_planes(tags, mode, is_raw=is_raw):
        return "Pillow misreads its separate planes of colours; save it with interleaved colours"
    if mode == "F" and is_big_endian and (is_separate or not is_raw):
        return "Pillow misreads its floats in big-endian byte order; save it in little-endian order"
    if tags.get(PHOTOMETRIC) == YCBCR and is_raw and tags.get(SUBSAMPLING, (2, 2)) != (1, 1):
        return "Pillow misreads subsampled YCbCr without compression; save it as RGB"
    if mode == "P" and 0 < max(tags[PALETTE]) < 256:
        return "Pillow misreads its palette, which has 8 bits where a TIFF should have 16; save it as RGB"
    return None


def _misreads_planes(tags: Mapping[int, Any], mode: str, *, is_raw: bool) -> bool:
    if mode in ("LA", "La", "PA", "LAB") or (mode == "RGBA" and EXTRA_SAMPLES not in tags):
        return True
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    return is_raw and mode != "F" and (bits not in (1, 8) or tags.get(PHOTOMETRIC) == WHITE_IS_0)


def is_cut(stream: BinaryIO) -> bool:
    """Return True if the tags of a page are cut off or end in zeros; Pillow would silently show only earlier pages."""
    stream.seek(0)
    head = stream.read(4)
    order, is_big = "<" if head.startswith(b"II") else ">", BIG in head
    number, offset = (struct.Struct(order + form) for form in ("QQ" if is_big else "HI"))
    entry = 4 + 2 * offset.size
    stream.seek(offset.size)
    (place,) = offset.unpack(stream.read(offset.size))
    seen = set()
    while place and place not in seen:
        seen.add(place)
        stream.seek(place)
        count = stream.read(number.size)
        if len(count) < number.size or (size := number.unpack(count)[0] * entry) > MAX_TAGS * entry:
            return True
        tags = stream.read(size + offset.size)
        types = (tags[begin + 2 : begin + 4] for begin in range(0, size, entry))
        if len(tags) < size + offset.size or b"\0\0" in types:
            return True
        (place,) = offset.unpack(tags[size:])
    return False
