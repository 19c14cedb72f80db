"""Removal of machine code for other chips from a CUDA library, so that the library compresses well.

A CUDA library stores its kernels in the section `.nv_fatbin`. The section contains headers; each header is followed by
the entries of one source file, one entry per chip. `prune` overwrites the payload of unneeded entries with zeros, which
compress to almost nothing. The headers, all offsets and the length of the file stay, so the CUDA runtime still finds
the entry of its chip. CUDA loads the code of a source file when one of its kernels is first called, so a zeroed entry
causes an error only then.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = 0xBA55ED50
ZSTANDARD = b"\x28\xb5\x2f\xfd"
KERNEL = re.compile(rb"\.text\.([A-Za-z0-9_]+)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Code of one source file for one chip."""

    start: int
    """Offset of the payload in the file (bytes)."""
    length: int
    """Length of the payload, padding included (bytes)."""
    packed: int
    """Length of the compressed code (bytes); 0 if it is not compressed."""
    plain: int
    """Length of the decompressed code (bytes)."""
    architecture: int
    """Chip, such as 90 for compute capability 9.0."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Sizes of the machine code that was kept and zeroed."""

    kept_bytes: int
    zeroed_bytes: int


def prune(
    library: bytearray,
    architecture: int,
    *,
    uncalled: re.Pattern[bytes],
    decompress: Callable[[bytes, int], bytes],
) -> Pruned:
    """Overwrite with zeros the machine code of other chips, and of source files whose kernels are never called.

    Args:
        library: a 64-bit ELF file; changed in place.
        architecture: chip whose code is kept.
        uncalled: pattern of the names of kernels that are never called. A source file is zeroed if all its kernels
            match.
        decompress: function that decompresses Zstandard data, given the data and the length of the result.

    Raises:
        ValueError: `library` is not a 64-bit ELF file, or it has no machine code for the chip that is kept.
    """
    kept = zeroed = 0
    for entry in entries(library):
        needed = entry.architecture == architecture and not _all_match(library, entry, uncalled, decompress)
        if needed:
            kept += entry.length
        else:
            library[entry.start : entry.start + entry.length] = bytes(entry.length)
            zeroed += entry.length
    if not kept:
        raise ValueError(f"no machine code for chip {architecture} is in the library; use another build of the library")
    return Pruned(kept_bytes=kept, zeroed_bytes=zeroed)


def entries(library: bytes | bytearray) -> Iterator[Entry]:
    """Yield the entries of all source files.

    Raises:
        ValueError: `library` is not a 64-bit ELF file, or it has no machine code.
    """
    at, length = section(library, b".nv_fatbin")
    end = at + length
    while at <= end - 16:
        magic, _, header, size = struct.unpack_from("<IHHQ", library, at)
        if magic != MAGIC:
            at += 8  # headers are aligned
            continue
        inner, at = at + header, at + header + size
        while inner < at:
            header, size = struct.unpack_from("<IQ", library, inner + 4)
            (packed,) = struct.unpack_from("<I", library, inner + 16)
            (architecture,) = struct.unpack_from("<I", library, inner + 28)
            (plain,) = struct.unpack_from("<Q", library, inner + 56)
            yield Entry(start=inner + header, length=size, packed=packed, plain=plain, architecture=architecture)
            inner += header + size


def section(library: bytes | bytearray, name: bytes) -> tuple[int, int]:
    """Return the offset and length of a section of an ELF file (bytes).

    Raises:
        ValueError: `library` is not a 64-bit ELF file, or it has no such section.
    """
    if bytes(library[:5]) != b"\x7fELF\x02":
        raise ValueError("not an ELF file of 64 bits; give a 64-bit Linux library")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, strings = struct.unpack_from("<HHH", library, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", library, table + index * size) for index in range(count)]
    for head in heads:
        start = heads[strings][4] + head[0]
        if bytes(library[start : library.index(b"\0", start)]) == name:
            return head[4], head[5]
    raise ValueError(f"no section {name.decode()}; give a library with CUDA code")


def _all_match(
    library: bytearray, entry: Entry, pattern: re.Pattern[bytes], decompress: Callable[[bytes, int], bytes]
) -> bool:
    code = bytes(library[entry.start : entry.start + (entry.packed or entry.length)])
    if entry.packed:
        if not code.startswith(ZSTANDARD):
            return False  # compressed in another way, so its kernels are unknown
        code = decompress(code, entry.plain)
    names = set(KERNEL.findall(code))
    return bool(names) and all(pattern.search(name) for name in names)
