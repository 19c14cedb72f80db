"""A folder beside a target in which it is made, so that it appears whole or not at all."""

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where what killed runs left stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, gone at the end unless it was renamed.

    What killed runs left of theirs goes first: such a folder is known by its name, and by a lock that nobody holds.
    """
    target = target.absolute()
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def swap(folder: Path, target: Path) -> None:
    """Let two folders change places: in one instant on Linux, elsewhere by way of a third name, `.NAME.….old`."""
    if _exchange(folder, target):
        return
    retired = folder.with_suffix(".old")
    target.replace(retired)
    try:
        folder.replace(target)
    except OSError:
        retired.replace(target)
        raise
    retired.replace(folder)


def _exchange(one: Path, other: Path) -> bool:
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system than Linux, or a C library before 2018
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        lock = _lock(folder, wait=True)
        # Until it was locked, another process could take it for one that was left, and remove it.
        with suppress(FileNotFoundError):
            there = folder.stat()
            if lock is None or os.path.samestat(there, os.fstat(lock)):
                return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Hold a folder until the descriptor is closed; None where another process does, or where nothing can be locked."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
