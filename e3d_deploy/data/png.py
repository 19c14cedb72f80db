"""Parts of PNG files that Pillow does not look at. Needs no PyTorch."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IDAT", b"fdAT")
"""Chunks whose checksums Pillow passes over."""
HEADER = 18
"""Bytes of the first chunk up to the depth and the kind of colours."""
ONE_BIT_GRAY = b"\1\0"
ANIMATION = b"acTL"
"""Chunk before the pixels of a PNG that is animated."""


def has_damage(content: bytes) -> bool:
    """Return True if the checksum of any pixels in a PNG is another, or missing."""
    view = memoryview(content)
    return any(
        kind in PIXELS and zlib.crc32(view[begin - 4 : end]) != int.from_bytes(view[end : end + 4], "big")
        for kind, begin, end in _chunks(content)
    )


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


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk, and the begin and end of its data."""
    place = len(SIGNATURE)
    while place + 8 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        yield content[place + 4 : place + 8], place + 8, end
        place = end + 4
