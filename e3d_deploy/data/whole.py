"""Evidence in a video's container that the end of the file is missing. Needs no PyTorch.

The headers of a container's outer parts tell their lengths. Reading them takes a few reads, whatever the size of the
file, and tells what decoders do not: they take a file that is cut between two frames for a shorter one.
"""

from pathlib import Path
from typing import BinaryIO

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
"""Boxes that an MP4, MOV or 3GP begins with."""
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
"""Elements of Matroska and WebM."""
SLACK = 8
"""Bytes by which some programs count a RIFF too long, as they include its header."""
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Begin of the object of an ASF or WMV that tells the size of the file."""
ASF_SIZE_AT = 40
"""Place of the size in it (bytes)."""
TS_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Sizes of the packets of a transport stream, and where their sync byte is."""


def missing_end(path: Path) -> str | None:
    """Return the sign by which the end of a video file is missing; None without one, and for other files."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(1024)
        if begin[4:8] in BOXES:
            end = _end_of_boxes(file, size)
        elif begin[:4] == b"RIFF":
            end = _end_of_riff(file, size) - SLACK
        elif begin[:4] == EBML.to_bytes(4, "big"):
            end = _end_of_elements(file, size)
        elif begin[:4] == b"GIF8":
            return None if _gif_ends(path.read_bytes()) else "its last block is not the end of a GIF"
        elif (place := begin.find(ASF_FILE)) >= 0:
            end = int.from_bytes(begin[place + ASF_SIZE_AT : place + ASF_SIZE_AT + 8], "little")
        else:
            return _part_of_packet(begin, size)
    return f"it has {size} bytes of {max(end, size + 1)}" if end > size else None


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not kind.isascii():  # 0: up to the end of the file; else padding
            return place
        place += length
    return place


def _end_of_riff(file: BinaryIO, size: int) -> int:
    place = 0
    while place + 12 <= size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length == 0:  # 0: a recording whose header was never finished
            return place
        place += 8 + length + length % 2
    return place


def _end_of_elements(file: BinaryIO, size: int) -> int:
    """Follow the elements of Matroska, and go into those whose length is not known, as of live recordings."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(12)
        id_length = _vint_length(head[0])
        id_ = int.from_bytes(head[:id_length], "big")
        if len(head) < id_length + 1:
            return size + 1
        length_length = _vint_length(head[id_length])
        digits = head[id_length : id_length + length_length]
        unknown = (1 << 7 * length_length) - 1
        length = int.from_bytes(digits, "big") & unknown
        place += id_length + length_length
        if length != unknown:
            if id_ == SEGMENT and place + length > size:
                return place + length
            place += length
        elif id_ not in (SEGMENT, CLUSTER):
            return place
    return place


def _vint_length(first: int) -> int:
    """Return the bytes of a number of EBML, by its first byte."""
    return 9 - max(first.bit_length(), 1)


def _gif_ends(content: bytes) -> bool:
    """Return True if the blocks of a GIF follow one another up to its trailer."""

    def palette(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    try:
        place = 13 + palette(content[10])
        while (kind := content[place]) != 0x3B:
            if kind == 0x21:
                place += 2
            elif kind == 0x2C:
                place += 11 + palette(content[place + 9])
            elif kind == 0:  # an empty block between others does no harm
                place += 1
                continue
            else:
                return False
            while length := content[place]:
                place += length + 1
            place += 1
    except IndexError:
        return False
    return True


def _part_of_packet(begin: bytes, size: int) -> str | None:
    for length, sync in TS_PACKETS:
        places = range(sync, len(begin), length)
        if len(places) > 2 and all(begin[place] == 0x47 for place in places):
            return f"its last packet has {size % length} bytes of {length}" if size % length else None
    return None
