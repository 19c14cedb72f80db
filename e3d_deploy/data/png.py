"""Check parts of PNG files that Pillow ignores. Needs no PyTorch."""

import struct
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
"""Header of a chunk: the length of its data, and its type."""
PIXELS = (b"IDAT", b"fdAT")
"""Types of the chunks whose checksums Pillow does not check."""
HEADER = 18
"""Size of the first chunk, up to and including the bit depth and the colour type (bytes)."""
GRAY, ONE_BIT_GRAY = 0, b"\1\0"
ANIMATION, FRAME, END = b"acTL", b"fcTL", b"IEND"
"""Types of chunks in an animated PNG: the number of frames, at the start; a frame's header; the end of the file."""
TRANSPARENT = b"tRNS"
"""Type of the chunk with the transparent colour."""


def has_damage(content: bytes) -> bool:
    """Return True if the checksum of pixels in a PNG does not match, or is missing."""
    view, place = memoryview(content), len(SIGNATURE)
    while place + CHUNK.size <= len(content):
        length, kind = CHUNK.unpack_from(content, place)
        end = place + CHUNK.size + length
        if kind in PIXELS and zlib.crc32(view[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return True
        place = end + 4
    return False


def why_misplayed(content: bytes) -> str | None:
    """Return why FFmpeg would play an animated PNG incompletely or wrongly, and a remedy; None if it would not."""
    found: Counter[bytes] = Counter()
    declared, is_shifted, place = 0, False, len(SIGNATURE)
    while place + CHUNK.size <= len(content):
        length, kind = CHUNK.unpack_from(content, place)
        found[kind] += 1
        data = content[place + CHUNK.size : place + CHUNK.size + 16]
        if kind == ANIMATION:
            declared = int.from_bytes(data[:4], "big")
        elif kind == FRAME:
            is_shifted = is_shifted or any(data[12:])  # bytes 12 to 15: the x offset of the frame
        place += CHUNK.size + length + 4
    if found[FRAME] < declared:
        return f"broke off after {found[FRAME]} of {declared} frames; copy or export it again"
    if not found[END]:
        return "its end mark is missing; copy or export it again"
    bits, colours = content[len(SIGNATURE) + HEADER - 2 : len(SIGNATURE) + HEADER]
    if bits < 8 and is_shifted:
        return f"has {bits}-bit frames that do not begin at the left edge, which FFmpeg misplaces; save it with 8 bits"
    if bits < 8 and colours == GRAY and found[TRANSPARENT]:
        return f"has a transparent {bits}-bit gray, which FFmpeg ignores; save it with 8 bits"
    return None


def is_animated(file: Path) -> bool:
    """Return True for an animated PNG that FFmpeg plays; the name of the file does not matter.

    False for 1-bit gray, which Pillow reads instead. Also False for a file that cannot be opened, because the error is
    reported when the file is read.
    """
    with suppress(OSError), file.open("rb") as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE or stream.read(HEADER)[-2:] == ONE_BIT_GRAY:
            return False
        stream.seek(len(SIGNATURE))
        while len(head := stream.read(8)) == 8 and head[4:] not in PIXELS:
            if head[4:] == ANIMATION:
                return True
            stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False
