"""Files that are whole or not there, and their hashes."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e3d_deploy.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all, whoever else writes it.

    Raises:
        OSError: it cannot be written, with its name.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk has none
        raise
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `path` when the block ends, and nowhere when it fails.

    Raises:
        ConfigError: something other than an empty folder is there, or its parent is not; at the start, before the work.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: is there already and not an empty folder; choose another")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; make it first")
    partial = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.rmdir()  # empty, as was checked
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cache_folder(kind: str) -> Path:
    """Where the desktop's rules put what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e3d_deploy" / kind


def sha256(path: Path) -> str:
    """The hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file, which exists as long as somebody does, or of a folder.

    The kernel frees it when its process ends, however that ends. Where nothing can be locked, nobody waits.

    Args:
        waiting: called before waiting for another process.
    """
    descriptor = _lock(path, waiting)
    try:
        yield
    finally:
        if not path.is_dir():
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, waiting: Callable[[], None]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if fcntl is not None and not _try(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                waiting()
                _try(descriptor, fcntl.LOCK_EX)
            # Who held it before may have removed the file meanwhile, and then another one counts.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
