"""Machine code for one chip in a library that was built for many.

A CUDA library keeps its kernels in the section `.nv_fatbin`: headers, each followed by the entries of one source file,
one entry per chip. Zeroing the payload of an entry keeps the length of the file and every offset, and the headers
stay, so the CUDA runtime still finds the entry of the chip. CUDA loads modules when one of their kernels is first
called, so a zeroed one fails only then. Zeros compress to nothing.
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
    """Offset of the payload in the file."""
    length: int
    """Length of the payload, padding included (bytes)."""
    packed: int
    """Length of the compressed code (bytes); 0 if it is not compressed."""
    plain: int
    """Length of the code once decompressed (bytes)."""
    architecture: int
    """Chip, such as 90 for compute capability 9.0."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Outcome of pruning a library."""

    kept_bytes: int
    zeroed_bytes: int


def prune(
    library: bytearray,
    architecture: int,
    *,
    uncalled: re.Pattern[bytes],
    decompress: Callable[[bytes, int], bytes],
) -> Pruned:
    """Zero the machine code of other chips, and of source files whose kernels are all known never to be called.

    Args:
        library: an ELF file of 64 bits; changed in place.
        architecture: the chip whose code stays.
        uncalled: matches names of kernels that are never called.
        decompress: decompresses Zstandard, given the data and the length of the result.

    Raises:
        ValueError: no such file, one without machine code, or one without code for the chip.
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
        raise ValueError(f"no machine code for chip {architecture} is in the library; take another build of it")
    return Pruned(kept_bytes=kept, zeroed_bytes=zeroed)


def entries(library: bytes | bytearray) -> Iterator[Entry]:
    """Find the entries of all source files.

    Raises:
        ValueError: not an ELF file of 64 bits, or one without machine code.
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
    """Return offset and length of a section of an ELF file.

    Raises:
        ValueError: not an ELF file of 64 bits, or it has no such section.
    """
    if bytes(library[:5]) != b"\x7fELF\x02":
        raise ValueError("not an ELF file of 64 bits; give a Linux library")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, strings = struct.unpack_from("<HHH", library, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", library, table + index * size) for index in range(count)]
    for head in heads:
        start = heads[strings][4] + head[0]
        if bytes(library[start : library.index(b"\0", start)]) == name:
            return head[4], head[5]
    raise ValueError(f"no section {name.decode()}; the library holds no CUDA code")


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
