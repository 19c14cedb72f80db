"""Find damage in video containers that FFmpeg's demuxers skip silently. Needs no PyTorch."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

EBML, SEGMENT, CLUSTER, VOID, CHECKSUM = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xEC, 0xBF
"""IDs of Matroska and WebM elements."""
OGG_HEADER = 27
"""Size of the header of an Ogg page, before the table of segment lengths (bytes)."""
OGG_CHECKSUM = slice(22, 26)
"""Bytes of the checksum in the header of an Ogg page."""
START_CODE, PACK_HEADER, PROGRAM_END = b"\0\0\1", 0xBA, 0xB9
"""Start code of an MPEG program stream, and the types of its packets that have no length field."""
ASF_STREAM = bytes.fromhex("9107dcb7b7a9cf118ee600c00c205365")
"""Start of a header object that describes one stream, in an ASF file."""
ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
"""Stream type of a video in an ASF file."""
ASF_KIND_AT, ASF_STREAM_AT = 24, 72
"""Offsets of the stream type and the stream number in the object that starts with `ASF_STREAM` (bytes)."""
NUMBER_BYTES = (0, 1, 2, 4)
"""Size of a number in an ASF packet, for each length code (bytes)."""
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Table that reverses the bits of a byte, to compute Ogg's CRC with zlib."""


def damaged_at(place: int, found: bytes) -> str:
    """Return a message that a file is damaged at byte `place`, where the bytes `found` are."""
    if not any(found):
        return f"it is filled with zeros from byte {place}, like an unfinished download"
    return f"it is damaged at byte {place}"


def cut_after(size: int, end: int) -> str:
    """Return a message that a file has only `size` bytes, but should have `end` bytes."""
    return f"it has {size} bytes of {max(end, size + 1)}"


def damage_in_matroska(file: BinaryIO, size: int, *, checksums: bool) -> str | None:
    """Describe the damage in a Matroska or WebM file, or its missing end; None if the file is intact.

    Each element has to end within the element around it. Programs that write while they record may leave the lengths of
    segments and clusters unknown. FFmpeg writes checksums of clusters into .mkv files.

    Args:
        file: the open file.
        size: size of the file (bytes).
        checksums: also check the checksums, which reads the whole file.
    """
    place, ends = 0, [size]  # the ends of the elements around `place`
    while place < size:
        while place == ends[-1]:
            ends.pop()
        file.seek(place)
        head = file.read(12)
        id_length = _number_length(head[0])
        length_length = _number_length(head[id_length]) if len(head) > id_length else 8
        begin = place + id_length + length_length
        id_ = int.from_bytes(head[:id_length], "big")
        if len(ends) == 1 and id_ not in (EBML, SEGMENT, CLUSTER, VOID):
            return None  # data after the segment does not belong to it
        if id_length > 4:
            return damaged_at(place, head[:4])
        if begin > size:
            return cut_after(size, begin)
        unknown = (1 << 7 * length_length) - 1
        length = int.from_bytes(head[id_length : id_length + length_length], "big") & unknown
        end = ends[-1] if length == unknown else begin + length
        if end > ends[-1]:
            return cut_after(size, end) if ends[-1] == size else damaged_at(place, head)
        if checksums and id_ == CHECKSUM and ends[-1] < size and not _has_checksum(file, begin, ends[-1]):
            return f"{damaged_at(place, head)}, where a checksum does not match"
        if id_ in (SEGMENT, CLUSTER):
            ends.append(end)
        elif length == unknown:
            return None
        place = begin if id_ in (SEGMENT, CLUSTER) else end
    return None


def _number_length(first: int) -> int:
    """Return the size of an EBML number from its first byte (bytes); 9 if that byte is 0, which is invalid."""
    return 9 - first.bit_length()


def _has_checksum(file: BinaryIO, begin: int, end: int) -> bool:
    """Return True if the checksum at `begin` matches the data after it, up to `end`."""
    file.seek(begin)
    stored = int.from_bytes(file.read(4), "little")
    return zlib.crc32(file.read(end - begin - 4)) == stored


def damage_in_ogg(file: BinaryIO, size: int, *, checksums: bool) -> str | None:
    """Describe the damage in an Ogg file, or its missing end; None if the file is intact.

    Demuxers drop a page whose checksum does not match.

    Args:
        file: the open file.
        size: size of the file (bytes).
        checksums: also check the checksums, which reads the whole file.
    """
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(OGG_HEADER)
        if len(head) == OGG_HEADER and head[:4] != b"OggS":
            return damaged_at(place, head)
        lengths = file.read(head[-1])
        end = place + OGG_HEADER + len(lengths) + sum(lengths)
        if len(head) < OGG_HEADER or end > size:
            return cut_after(size, end)
        if checksums and not _page_has_checksum(head, lengths + file.read(sum(lengths))):
            return f"{damaged_at(place, head)}, where a checksum does not match"
        place = end
    return None


def _page_has_checksum(head: bytes, rest: bytes) -> bool:
    stored = int.from_bytes(head[OGG_CHECKSUM], "little")
    return _ogg_checksum(head[:22] + bytes(4) + head[26:] + rest) == stored


def _ogg_checksum(page: bytes) -> int:
    """Return Ogg's CRC-32, which takes the highest bit first; zlib's, which computes it, takes the lowest first."""
    mirrored = zlib.crc32(page.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def damage_in_program_stream(file: BinaryIO, size: int) -> str | None:
    """Describe the damage in an MPEG program stream, or its missing end; None if the file is intact."""
    place, may_be_padded = 0, False
    while place < size:
        file.seek(place)
        head = file.read(14)
        if head[:3] != START_CODE:
            # Video CDs, which are MPEG-1, also have zeros between packets.
            return None if may_be_padded and not any(head[:4]) else damaged_at(place, head[:4])
        if len(head) < 6:
            return None if head[3:] == bytes([PROGRAM_END]) else cut_after(size, place + 6)
        if head[3] == PACK_HEADER:
            is_mpeg1 = may_be_padded = head[4] >> 4 == 0b0010
            place += 12 if is_mpeg1 else 14 + (head[-1] & 7)  # the low bits are the number of stuffing bytes
        elif head[3] == PROGRAM_END:
            may_be_padded = True
            place += 4
        else:
            place += 6 + int.from_bytes(head[4:6], "big")
    return cut_after(size, place) if place > size else None


def damage_in_asf(file: BinaryIO, first: int, length: int, count: int) -> str | None:
    """Describe a damaged packet in an ASF or WMV file; None if all packets are intact.

    A payload, which is one piece of a frame, has to end within its packet. The payloads of a video frame have to follow
    one another without a gap. Demuxers drop frames for which this is not true.

    Args:
        file: the open file.
        first: offset of the first packet (bytes).
        length: size of each packet (bytes).
        count: number of packets.
    """
    file.seek(0)
    is_video = _asf_streams(file.read(first))
    missing: dict[int, tuple[int, int, int]] = {}  # by stream: frame number, bytes read so far, bytes still missing
    for place in range(first, first + count * length, length):
        file.seek(place)
        packet = file.read(length)
        if len(packet) < length:
            return None
        try:
            for stream, frame, offset, size, total in _asf_payloads(packet):
                if not is_video[stream]:
                    continue
                known, so_far, lacks = missing.get(stream, (frame, offset, total - offset))
                if (frame, offset) != (known, so_far) if lacks else offset:
                    return damaged_at(place, packet)
                missing[stream] = frame, offset + size, total - offset - size
        except (LookupError, ValueError):
            return damaged_at(place, packet)
    return None


def _asf_streams(header: bytes) -> dict[int, bool]:
    """Return the stream numbers in the header of an ASF file; the value is True for a video."""
    streams, place = {}, -1
    while (place := header.find(ASF_STREAM, place + 1)) >= 0:
        kind = header[place + ASF_KIND_AT : place + ASF_KIND_AT + len(ASF_VIDEO)]
        streams[header[place + ASF_STREAM_AT] & 0x7F] = kind == ASF_VIDEO
    return streams


def _asf_payloads(packet: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each payload of a packet: stream, frame number, offset in the frame, size, and size of the frame.

    Raises:
        IndexError, ValueError: the packet is damaged.
    """
    place = 0

    def number(kind: int) -> int:
        nonlocal place
        place += NUMBER_BYTES[kind & 3]
        return int.from_bytes(packet[place - NUMBER_BYTES[kind & 3] : place], "little")

    if packet[0] & 0x80:  # data for error correction come first
        place = 1 + (packet[0] & 0xF)
    lengths, kinds = packet[place], packet[place + 1]
    place += 2
    end = number(lengths >> 5) or len(packet)
    number(lengths >> 1)
    end -= number(lengths >> 3)
    place += 6  # timestamps
    parts, kind = 1, 0
    if lengths & 1:
        parts, kind = packet[place] & 0x3F, packet[place] >> 6
        place += 1
    for _ in range(parts):
        stream = packet[place] & 0x7F
        place += 1
        frame, offset, copied = number(kinds >> 4), number(kinds >> 2), number(kinds)
        total = int.from_bytes(packet[place : place + 4], "little")
        place += copied
        size = number(kind) if lengths & 1 else end - place
        place += size
        if size < 0 or place > end or end > len(packet):
            raise ValueError
        if copied != 1:  # 1: the payload holds complete small frames
            yield stream, frame, offset, size, total
