"""Packs what Inductor compiled, so that the next machine need not compile it again.

    python -m benchmarks.gpu.inductor CACHE FILE

CACHE is the folder of TORCHINDUCTOR_CACHE_DIR and FILE the .tar.xz to write. Put it into `.gpu-pack/inductor/` to carry
it with the next training call.
"""

import sys
from pathlib import Path

from benchmarks.gpu import borrowed
from benchmarks.gpu.pack import archive
from benchmarks.gpu.travel import MIB, files


def pack(cache: Path, file: Path, most_bytes: int) -> str:
    """Write the files of a cache as an archive; return its size as text.

    Locks are deleted before: equal files become one file with several names, and so would the locks.

    Raises:
        ValueError: nothing was compiled, or the archive is larger than what comes back, and is deleted.
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
            "the next call has to compile anew"
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
