"""Pack the compiler cache of Inductor, so that the next machine does not compile the same code again.

    python -m benchmarks.gpu.inductor CACHE FILE

CACHE is the folder that TORCHINDUCTOR_CACHE_DIR names. Writes the archive FILE (.tar.xz). To carry it with the next
training call, move it to `.gpu-pack/inductor/`.
"""

import sys
from pathlib import Path

from benchmarks.gpu import borrowed
from benchmarks.gpu.pack import archive
from benchmarks.gpu.travel import MIB, files


def pack(cache: Path, file: Path, most_bytes: int) -> str:
    """Write the files of a cache to an archive; return the sizes as text.

    Lock files are deleted first, because the archive stores equal files as hard links of one file, and locks that are
    one file would wait for each other.

    Raises:
        ValueError: the cache is empty, or the archive exceeds `most_bytes` and was deleted.
    """
    for lock in list(cache.rglob("*.lock")):
        lock.unlink()
    found = sum(path.stat().st_size for path in files(cache))
    if not found:
        raise ValueError(f"{cache}: nothing was compiled; train with --compile and TORCHINDUCTOR_CACHE_DIR")
    archive(cache, file)
    size = file.stat().st_size
    if size > most_bytes:
        file.unlink()
        raise ValueError(
            f"{file.name}: got {size / MIB:.1f} MiB, expected at most {most_bytes / MIB:.0f}; "
            "the next call must compile again"
        )
    return f"{file.name}: {size / MIB:.1f} MiB, {found / MIB:.1f} MiB unpacked"


def main() -> int:
    cache, file = map(Path, sys.argv[1:])
    try:
        print(pack(cache, file, borrowed.read().limits.file_back_bytes))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
