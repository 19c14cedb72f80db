"""Makes the background of a GIF black, as no player shows its colour. Needs no PyTorch."""

from io import BytesIO
from pathlib import Path

HEADER = 13
"""Bytes before the palette."""
HAS_PALETTE, INTERLACED, SIZE = 0x80, 0x40, 0x07
"""Bits that tell of a palette: it is there, the image behind it is interlaced, and its size."""


def source_of(path: Path) -> str | BytesIO:
    """Return what FFmpeg opens for a video: its address, or a GIF whose background is made black.

    FFmpeg fills places that no frame covers with the background colour, which no player heeds.
    """
    address = f"file:{path}"  # else FFmpeg takes what stands before a colon for a protocol
    if path.suffix.lower() != ".gif" or not path.is_file():
        return address
    try:
        content = path.read_bytes()
    except OSError:  # told when it is opened
        return address
    return BytesIO(with_black_background(content)) if content[:4] == b"GIF8" else address


def with_black_background(content: bytes) -> bytes:
    """Return a GIF with a black palette for all images, the former one being given to each image without its own."""
    palette = content[HEADER : HEADER + _palette_size(content[10:11])]
    background = 3 * content[11] if palette else 0
    if not any(palette[background : background + 3]):
        return content
    parts, copied = [content[:HEADER], bytes(len(palette))], HEADER + len(palette)
    place = copied
    try:
        while (kind := content[place]) != 0x3B:
            place += 1
            if kind == 0x2C:
                place += 9
                flags = content[place - 1]
                if not flags & HAS_PALETTE:
                    flags = flags & INTERLACED | HAS_PALETTE | content[10] & SIZE
                    parts += [content[copied : place - 1], bytes([flags]), palette]
                    copied = place
                else:
                    place += _palette_size(content[place - 1 : place])
            if kind in (0x21, 0x2C):
                place += 1
                while length := content[place]:
                    place += length + 1
                place += 1
            elif kind != 0:
                break
    except IndexError:  # it is cut
        pass
    if b"GIF8" in content[place:]:  # a second file, whose images FFmpeg shows with the palette of the first
        return content
    return b"".join([*parts, content[copied:]])


def _palette_size(flags: bytes) -> int:
    return 3 << (flags[0] & SIZE) + 1 if flags and flags[0] & HAS_PALETTE else 0
