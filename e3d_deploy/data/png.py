"""Parts of PNG files that Pillow does not look at. Needs no PyTorch."""

import struct
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
"""Begin of a chunk: the length of its data, and its kind."""
PIXELS = (b"IDAT", b"fdAT")
"""Chunks whose checksums Pillow passes over."""
HEADER = 18
"""Bytes of the first chunk up to the depth and the kind of colours."""
GRAY, ONE_BIT_GRAY = 0, b"\1\0"
ANIMATION, FRAME, END = b"acTL", b"fcTL", b"IEND"
"""Chunks of an animated PNG: before its pixels, with the number of frames; before each frame; and the last one."""
TRANSPARENT = b"tRNS"
"""Chunk of a transparent colour."""


def has_damage(content: bytes) -> bool:
    """Return True if the checksum of any pixels in a PNG is another, or missing."""
    view, place = memoryview(content), len(SIGNATURE)
    while place + CHUNK.size <= len(content):
        length, kind = CHUNK.unpack_from(content, place)
        end = place + CHUNK.size + length
        if kind in PIXELS and zlib.crc32(view[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return True
        place = end + 4
    return False


def why_misplayed(content: bytes) -> str | None:
    """Return why FFmpeg would play an animated PNG in part or otherwise, and what to do; None if it plays it right."""
    found: Counter[bytes] = Counter()
    told, is_shifted, place = 0, False, len(SIGNATURE)
    while place + CHUNK.size <= len(content):
        length, kind = CHUNK.unpack_from(content, place)
        found[kind] += 1
        data = content[place + CHUNK.size : place + CHUNK.size + 16]
        if kind == ANIMATION:
            told = int.from_bytes(data[:4], "big")
        elif kind == FRAME:
            is_shifted = is_shifted or any(data[12:])  # its distance from the left
        place += CHUNK.size + length + 4
    if found[FRAME] < told:
        return f"broke off after {found[FRAME]} of {told} frames; copy or export it again"
    if not found[END]:
        return "its end mark is missing; copy or export it again"
    bits, colours = content[len(SIGNATURE) + HEADER - 2 : len(SIGNATURE) + HEADER]
    if bits < 8 and is_shifted:
        return f"has {bits}-bit frames that do not begin at the left, which FFmpeg misplaces; save it with 8 bits"
    if bits < 8 and colours == GRAY and found[TRANSPARENT]:
        return f"has a transparent {bits}-bit gray, which FFmpeg passes over; save it with 8 bits"
    return None


def is_animated(file: Path) -> bool:
    """Return True for an animated PNG that FFmpeg plays, whatever its name.

    A file that cannot be opened is left to its reader, and one of one bit to Pillow.
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
