"""Make the background of a GIF black, as players show it. Needs no PyTorch."""

from io import BytesIO
from pathlib import Path

HEADER = 13
"""Size of a GIF's header, before the palette (bytes)."""
HAS_PALETTE, INTERLACED, SIZE = 0x80, 0x40, 0x07
"""Bits of the flags of an image: a palette is present, the image is interlaced, and the size of the palette."""


def source_of(path: Path) -> str | BytesIO:
    """Return the address of a video for FFmpeg, or the content of a GIF with a black background.

    FFmpeg fills areas that no frame covers with the GIF's background colour, which all players ignore.
    """
    address = f"file:{path}"  # without the prefix FFmpeg would take a colon in the path for the end of a protocol
    if path.suffix.lower() != ".gif" or not path.is_file():
        return address
    try:
        content = path.read_bytes()
    except OSError:  # reported when the file is opened
        return address
    return BytesIO(with_black_background(content)) if content[:4] == b"GIF8" else address


def with_black_background(content: bytes) -> bytes:
    """Return a GIF with a black global palette; images without their own palette get a copy of the original."""
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
    except IndexError:  # the file is cut
        pass
    if b"GIF8" in content[place:]:  # a second GIF follows, whose images FFmpeg shows with the palette of the first
        return content
    return b"".join([*parts, content[copied:]])


def _palette_size(flags: bytes) -> int:
    return 3 << (flags[0] & SIZE) + 1 if flags and flags[0] & HAS_PALETTE else 0
