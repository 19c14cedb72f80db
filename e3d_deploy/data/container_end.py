"""Detect that the end of a video file is missing, from its container. Needs no PyTorch.

The elements of a container state their lengths in headers. These reveal what decoders miss: a file that is cut between
two frames decodes like a shorter file. MP4 and AVI need a few reads; Matroska, FLV, WMV and MPEG program streams one
read per packet; Ogg one per page. GIF files are read completely. To check checksums, Ogg files and the Matroska files
that FFmpeg writes are also read completely.
"""

import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from e3d_deploy.data.container_damage import (
    EBML,
    PACK_HEADER,
    START_CODE,
    cut_after,
    damage_in_asf,
    damage_in_matroska,
    damage_in_ogg,
    damage_in_program_stream,
    damaged_at,
)

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
"""Types of the boxes that an MP4, MOV or 3GP file may begin with."""
PACK = START_CODE + bytes([PACK_HEADER])
"""First bytes of an MPEG program stream."""
FLV_TAGS = (8, 9, 18)
"""Types of the tags of an FLV file: sound, video and data."""
FLV_SPARE_S = 0.25
"""Maximum time from the last tag of a complete FLV to the end that its header states (s)."""
SLACK = 8
"""Size of a RIFF header, which some programs include in the stated length (bytes)."""
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Start of the object that states the file size, in an ASF or WMV file."""
ASF_SIZE_AT = 40
"""Offset of the file size in the object that starts with `ASF_FILE` (bytes)."""
ASF_PACKETS_AT, ASF_PACKET_SIZE_AT = 56, 92
"""Offsets of the number of packets and of their size in the object that starts with `ASF_FILE` (bytes)."""
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
"""First bytes of an ASF or WMV file."""
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
"""Start of the object that holds the packets, in an ASF or WMV file."""
ASF_DATA_HEADER = 50
"""Size of the header of the object that starts with `ASF_DATA` (bytes)."""
MAX_BYTES = 1 << 62
"""Size that is larger than any file (bytes)."""
INDEX_ENTRY = 16
"""Size of an entry in the index of an AVI file (bytes)."""
TS_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Sizes of the packets of a transport stream, each with the offset of its sync byte (bytes)."""


def missing_end(path: Path, *, checksums: bool = True) -> str | None:
    """Describe the damage or the missing end of a video file; None if it is intact or of a kind that is not checked.

    Args:
        path: the file.
        checksums: also check the checksums of Matroska and Ogg files, and the packets of WMV files. This reads the
            whole file.
    """
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(1024)
        if begin[4:8] in BOXES:
            if (zeros := _empty_fragment(file, size)) is not None:
                return damaged_at(zeros, b"")
            end = max((end for end, _ in _boxes(file, size)), default=0)
        elif begin[:4] == b"RIFF":
            if (zeros := _empty_chunk(file, size)) is not None:
                return damaged_at(zeros, b"")
            end = _end_of_riff(file, size) - SLACK
        elif int.from_bytes(begin[:4], "big") == EBML:
            return damage_in_matroska(file, size, checksums=checksums)
        elif begin[:4] == b"OggS":
            return damage_in_ogg(file, size, checksums=checksums)
        elif begin[:4] == PACK:
            return damage_in_program_stream(file, size)
        elif begin[:4] == b"GIF8":
            return None if _gif_ends(path.read_bytes()) else "its last block is not the end of a GIF"
        elif begin[:3] == b"FLV":
            *tags, (end, head) = _flv_tags(file)
            if end < size:
                return damaged_at(end, head[:4])
            last_ms = max((int.from_bytes(tag[7:] + tag[4:7], "big") for _, tag in tags), default=0)
            stated_bytes, stated_s = (_flv_number(begin, name) for name in (b"filesize", b"duration"))
            # One of the two numbers may be stale, because it describes the longer film from which this file was cut.
            if end == size < stated_bytes and last_ms / 1000 < stated_s - FLV_SPARE_S:
                end = int(stated_bytes)
        elif (place := begin.find(ASF_FILE)) >= 0:
            if damage := _damage_in_asf(file, begin[place:], look_into=checksums):
                return damage
            end = int.from_bytes(begin[place + ASF_SIZE_AT : place + ASF_SIZE_AT + 8], "little")
        else:
            return _cut_packet(file, begin, size)
    return cut_after(size, end) if end > size else None


def joined(path: Path) -> bool:
    """Return True if a file is two concatenated MP4, MOV, 3GP, FLV or WMV files; demuxers read only the first one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(16)
        if begin[4:8] in BOXES:
            kinds = [kind for _, kind in _boxes(file, path.stat().st_size)]
            return kinds.count(b"moov") > 1 or kinds.count(b"ftyp") > 1
        if begin[:3] == b"FLV":
            return any(kind[:3] == b"FLV" for _, kind in _flv_tags(file))
        if begin == ASF_HEADER:
            return any(place > 0 and kind == ASF_HEADER for place, _, kind in _asf_objects(file))
    return False


def _flv_tags(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the first 8 bytes of each tag, then the same for the data after the last tag."""
    file.seek(5)
    place = int.from_bytes(file.read(4), "big") + 4
    while True:
        file.seek(place)
        head = file.read(8)
        yield place, head
        if len(head) < 4 or head[0] & 0x1F not in FLV_TAGS:
            return
        place += 11 + int.from_bytes(head[1:4], "big") + 4


def _flv_number(begin: bytes, name: bytes) -> float:
    """Return a number from the header of an FLV file; 0 if the header does not state it."""
    _, found, rest = begin.partition(name + b"\0")  # 0 is the type code of a number
    return float(struct.unpack(">d", rest[:8])[0]) if found and len(rest) >= 8 else 0.0


def _asf_objects(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield the offset, end and type of each outer object of an ASF file."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(24)
        length = int.from_bytes(head[16:], "little")
        if len(head) < 24 or not 24 <= length < MAX_BYTES:  # 0 if the writer did not finish the header
            return
        yield place, place + length, head[:16]
        place += length


def _damage_in_asf(file: BinaryIO, properties: bytes, *, look_into: bool) -> str | None:
    """Describe zeros in place of a packet or after the last object, or a damaged packet; None without damage.

    Args:
        file: the open file.
        properties: the first bytes of the file, from the object that starts with `ASF_FILE`.
        look_into: also check the payloads in each packet, which reads the whole file.
    """
    count = int.from_bytes(properties[ASF_PACKETS_AT : ASF_PACKETS_AT + 8], "little")
    length = int.from_bytes(properties[ASF_PACKET_SIZE_AT : ASF_PACKET_SIZE_AT + 4], "little")
    objects = list(_asf_objects(file))
    data = next((place for place, _, kind in objects if kind == ASF_DATA), None)
    if data is None or length == 0:
        return None
    first = data + ASF_DATA_HEADER
    for place in chain(range(first, first + count * length, length), [objects[-1][1]]):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            break
        if head == bytes(8):
            return damaged_at(place, head)
    return damage_in_asf(file, first, length, count) if look_into else None


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the end and the type of each outer box of an MP4."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length == 0:  # the box extends to the end of the file
            yield size, kind
        if length < 8 or not kind.isascii():  # padding
            return
        place += length
        yield place, kind


def _empty_fragment(file: BinaryIO, size: int) -> int | None:
    """Return the offset of zeros after the fragments of an MP4 that lacks an index of fragments; None without zeros."""
    boxes = list(_boxes(file, size))
    kinds = [kind for _, kind in boxes]
    if b"moof" in kinds and b"mfra" not in kinds and kinds[-1] == bytes(4):
        return boxes[-2][0]
    return None


def _end_of_riff(file: BinaryIO, size: int) -> int:
    place = 0
    while place + 12 <= size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length == 0:  # 0 if the writer did not finish the header
            return place
        place += 8 + length + length % 2
    return place


def _empty_chunk(file: BinaryIO, size: int) -> int | None:
    """Return the offset of zeros that replace a chunk of an AVI or the end of its index; None without zeros."""
    file.seek(4)
    place, end = 12, min(size, 8 + int.from_bytes(file.read(4), "little"))
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        if head == bytes(8):
            return place
        begin, length = place + 8, int.from_bytes(head[4:], "little")
        if length == 0:  # 0 if the writer did not finish the file
            return None
        place = begin + length + length % 2
        if head[:4] == b"idx1" and length >= INDEX_ENTRY:
            file.seek(begin + length - INDEX_ENTRY)
            if file.read(INDEX_ENTRY) == bytes(INDEX_ENTRY):
                return begin + length - INDEX_ENTRY
    return None


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
            elif kind == 0:  # an empty block between other blocks is harmless
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


def _cut_packet(file: BinaryIO, begin: bytes, size: int) -> str | None:
    for length, sync in TS_PACKETS:
        places = range(sync, len(begin), length)
        if len(places) > 2 and all(begin[place] == 0x47 for place in places):
            if size % length:
                return f"its last packet has {size % length} bytes of {length}"
            file.seek(size - length)
            packet = file.read(length)
            return None if packet[sync] == 0x47 else damaged_at(size - length, packet)
    return None
