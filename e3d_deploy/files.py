"""Files and folders that are whole or not there, locks, and hashes."""

import ctypes
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e3d_deploy.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked, and what killed runs left stays
    fcntl = None  # type: ignore[assignment]


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all, whoever else writes it.

    Raises:
        OSError: it cannot be written, with its name.
    """
    try:
        with new_file(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        error.filename = str(path)  # a full disk has none, and the folder it was made in is gone
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which stands at `path` when the block ends, and nowhere when it fails.

    A file that was there is replaced. The one to write has the same name, in a folder of its own.
    """
    with workspace(path) as folder:
        partial = folder / path.name
        yield partial
        sync(partial)
        partial.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which stands at `path` when the block ends, and nowhere when it fails.

    Raises:
        ConfigError: something other than an empty folder is there, or its parent is not; at the start, before the work.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: is there already and not an empty folder; choose another")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; make it first")
    with workspace(path) as folder:
        partial = folder / path.absolute().name
        partial.mkdir()
        yield partial
        if path.exists():
            path.rmdir()  # empty, as was checked
        partial.replace(path)


def sync(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, gone at the end unless it was renamed.

    What killed runs left of theirs goes first: such a folder is known by its name, and by a lock that nobody holds.
    """
    target = target.absolute()
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with suppress(OSError), _hold(left, None, folder=True):
            shutil.rmtree(left, ignore_errors=True)
    folder, descriptor = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        # Until it was locked, another process could take it for one that was left, and remove it.
        with suppress(FileNotFoundError):
            return folder, _lock(folder, lambda: None, folder=True)


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


def cache_folder(kind: str) -> Path:
    """Return the folder where the desktop's rules put what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e3d_deploy" / kind


def sha256(path: Path) -> str:
    """Return the hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = lambda: None) -> Iterator[None]:
    """Hold the lock of a file, which exists as long as somebody does, or of a folder.

    The kernel frees it when its process ends, however that ends. Where nothing can be locked, nobody waits.

    Args:
        waiting: called before waiting for another process; None does not wait.

    Raises:
        BlockingIOError: nobody is to wait, and another process holds it, or nothing can be locked.
    """
    folder = path.is_dir()
    with _hold(path, waiting, folder=folder):
        try:
            yield
        finally:
            if not folder:
                path.unlink(missing_ok=True)


@contextmanager
def _hold(path: Path, waiting: Callable[[], None] | None, *, folder: bool) -> Iterator[None]:
    descriptor = _lock(path, waiting, folder=folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, waiting: Callable[[], None] | None, *, folder: bool) -> int | None:
    """Return a descriptor that holds the lock until it is closed; None where the system has no locks."""
    if fcntl is None:
        if waiting is None:
            raise BlockingIOError(f"{path}: cannot be locked")
        return None
    while True:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held = _try(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if waiting is None and not held:
                raise BlockingIOError(f"{path}: another process holds it, or it cannot be locked")
            if held is False and waiting is not None:
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


def _try(descriptor: int, how: int) -> bool | None:
    """Lock an open file; return False where another process holds it, and None where nothing can be locked."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
