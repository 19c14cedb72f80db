"""Atomic writes of files and folders, locks, and hashes."""

import ctypes
import errno
import glob
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from e3d_deploy.errors import ConfigError
from e3d_deploy.interrupts import INDIVISIBLE

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and leftovers of killed runs are not removed
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""Suffix of workspaces, the folders in which results are prepared."""
RETIRED = ".old"
"""Suffix of the temporary name that `swap` uses on systems that cannot exchange two folders."""
ABANDONED_S = 24 * 60 * 60
"""Time without a change after which a workspace counts as abandoned, if its lock does not show whether its process has
ended (s)."""
MAX_NAME = 200
"""Maximum length of the output path's name within the name of its workspace (bytes); file systems allow names of 255
bytes."""
MAX_LINKS = 40
"""Maximum number of links that Linux follows in a row."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or quota."""
STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
"""Descriptors of the standard streams by path."""


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically, like `new_file`; several processes may write the same file at the same time.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    with naming(path):
        if _is_special(path):  # written directly: the content is complete, so no workspace is needed
            with _opened(path) as stream:
                stream.write(content)
            return
    with new_file(path) as partial:
        partial.write_bytes(content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically. If `path` is a link, the file replaces the link itself.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    there = _status(path)
    with naming(path), workspace(path) as folder:
        partial = folder / path.name
        partial.write_bytes(content)
        sync(partial)
        if there is not None:
            _keep_mode(partial, there)
        partial.replace(path)


def _is_special(path: Path) -> bool:
    """Return True for a descriptor such as `/dev/stdout`, a pipe or a device, which must not be replaced.

    Raises:
        IsADirectoryError: The path is a folder.
    """
    there = _status(path)
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return _descriptor(path) is not None or (there is not None and not stat.S_ISREG(there.st_mode))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` when the block ends, and is removed if the block fails.

    The new file keeps the mode and owner of an existing file. If `path` is a link, the file behind the link is created
    or replaced. If `path` is a pipe, a device or a descriptor such as `/dev/stdout`, the bytes are written to it when
    the block ends. The temporary file has the same name as `path`, in a folder of its own.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    with naming(path):
        if _is_special(path):
            with _opened(path) as stream, scratch_folder() as folder:
                partial = folder / path.name
                yield partial
                with naming(path), partial.open("rb") as file:
                    shutil.copyfileobj(file, stream)
            return
        there, place = _status(path), Path(os.path.realpath(path))
        with workspace(place) as folder:
            partial = folder / path.name
            yield partial
            sync(partial)
            if there is not None:
                _keep_mode(partial, there)
            partial.replace(place)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that appears at `path` when the block ends, and is removed if the block fails.

    If `path` is a link, the folder behind the link is created or replaced.

    Raises:
        ConfigError: `path` exists and is not an empty folder, or its parent does not exist. Raised before the block.
        OSError: The folder cannot be written; the error names `path`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: already exists and is not an empty folder; choose another path")
    place = place_of(path)
    with naming(path), workspace(place) as folder:
        partial = folder / place.name
        partial.mkdir()
        yield partial
        if (there := _status(place)) is not None:
            _keep_mode(partial, there)
            if sys.platform == "win32":  # other systems replace an empty folder atomically
                place.rmdir()
        partial.replace(place)


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Check that a file can be created or replaced at a path, before any work is done.

    Args:
        folder: check for a folder instead of a file.

    Raises:
        ConfigError: The parent folder is missing or is a file, the path is a mount point, or `path` is a folder and
            `folder` is False.
        OSError: The path cannot be written; the error names `path`.
    """
    if _descriptor(path) is not None:
        return
    with naming(path):
        place = place_of(path)
        if place.is_dir() and not folder:
            raise ConfigError(f"{path}: is a folder; choose another name")
        if place.exists() and not place.is_dir() and not place.is_file():  # a pipe or a device
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        with workspace(place):  # a trial, because some file systems refuse files despite the permissions
            pass


def place_of(path: Path, *, make: bool = False) -> Path:
    """Return the path, with links resolved, at which a new file or folder will be created.

    Args:
        make: create the parent folder if it is missing.

    Raises:
        ConfigError: The parent folder is missing or is a file, or the path is a mount point.
        OSError: The path cannot be looked up, or its parent folder cannot be created.
    """
    place = Path(os.path.realpath(path))
    subject = f"{path}:" if str(place) == os.path.abspath(path) else f"{path}: leads to {place};"
    if (file := file_above(place)) is not None:
        raise ConfigError(f"{subject} {file} is not a folder; choose another place")
    _status(path)
    if (place.is_dir() or place.is_file()) and os.path.ismount(place):
        raise ConfigError(f"{subject} is a mount point, which cannot be replaced; choose another place")
    if make:
        place.parent.mkdir(parents=True, exist_ok=True)
    elif not place.parent.is_dir():
        raise ConfigError(f"{subject} its folder does not exist; create it first")
    return place


def file_above(path: Path) -> Path | None:
    """Return the nearest existing ancestor of a path if that ancestor is not a folder; otherwise None."""
    there = next((folder for folder in path.parents if os.path.lexists(folder)), path)
    return there if path.parents and not there.is_dir() else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError in the block name `path` if it names no file, or a file in a workspace of `path`."""
    try:
        yield
    except OSError as error:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        place = Path(os.path.realpath(path))
        ours = any(Path(name) == place or _is_within_workspace(Path(name), place) for name in names)
        if error.errno is None or (names and not ours):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_within_workspace(path: Path, output_path: Path) -> bool:
    return any(part.startswith(_prefix(output_path)) and part.endswith(PARTIAL) for part in path.parts)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file or folder, with links resolved; None if it does not exist."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _opened(path: Path) -> BinaryIO:
    """Open a pipe, a device or a descriptor for writing.

    A descriptor is duplicated, so that the file behind the descriptor is written from the current position. Opening
    this file by its path would overwrite the file from the beginning.
    """
    descriptor = _descriptor(path)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "wb")
    return path.open("wb")


def is_stdout(path: Path) -> bool:
    """Return True for a path that names standard output, such as `/dev/stdout`, or for a link to such a path."""
    return _descriptor(path) == 1


def _descriptor(path: Path) -> int | None:
    """Return the descriptor that a path such as `/dev/stdout` names, with links resolved; None for other paths."""
    text = str(path)
    for _ in range(MAX_LINKS):
        if (match := re.fullmatch(r"/(?:dev|proc/self|proc/thread-self)/fd/(\d{1,9})", text)) is not None:
            return int(match[1])
        if text in STANDARD:
            return STANDARD[text]
        if not os.path.islink(text):
            break
        text = os.path.normpath(os.path.join(os.path.dirname(text), os.readlink(text)))
    return None


def _keep_mode(partial: Path, there: os.stat_result) -> None:
    """Copy the owner, if permitted, and the mode of an existing file or folder to its replacement."""
    with suppress(OSError, AttributeError):  # only root may change owners, and Windows has no chown
        os.chown(partial, there.st_uid, there.st_gid)
    partial.chmod(stat.S_IMODE(there.st_mode))


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def workspace(output_path: Path) -> Iterator[Path]:
    """Yield an empty folder next to `output_path`, and remove it when the block ends unless it was renamed.

    The folder has a random name and is locked until the block ends. Older workspaces of `output_path` are removed
    first if their process has certainly ended, or if they have not changed for a day.

    Raises:
        OSError: The folder cannot be created, or the block failed to write in it; the error names `output_path`.
    """
    output_path = output_path.absolute()
    _remove_leftovers(output_path)
    with naming(output_path):
        folder, descriptor = _locked_folder(output_path)
        try:
            yield folder
        finally:
            _remove_workspace(folder, descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder in TMPDIR, and remove it when the block ends, like `workspace`."""
    output_path = Path(tempfile.gettempdir()) / "e3d_deploy"
    try:
        with workspace(output_path) as folder:
            yield folder
    except OSError as error:
        if error.filename != str(output_path) or error.errno in (errno.EFBIG, errno.EIO):  # fails in any folder
            raise
        raise OSError(error.errno, f"{error.strerror}; set TMPDIR to a folder with room", error.filename) from error


def remove_left(folder: Path, names: str) -> None:
    """Remove leftovers of killed runs from a folder, by the rule of `workspace`.

    Args:
        names: pattern of the names of the output files, such as `step_*.png`.
    """
    for left in folder.glob(f".{names}.*{PARTIAL}"):
        _remove_if_abandoned(left)


def _remove_leftovers(output_path: Path) -> None:
    """Remove the workspaces of an output path whose processes have ended.

    A folder that `swap` moved aside is removed only if `output_path` exists; otherwise it may be the only copy.
    """
    prefix = glob.escape(_prefix(output_path))
    lefts = list(output_path.parent.glob(f"{prefix}*{PARTIAL}"))
    if os.path.isdir(output_path):
        lefts += output_path.parent.glob(f"{prefix}*{RETIRED}")
    for left in lefts:
        _remove_if_abandoned(left)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a workspace if its process has ended; do nothing if the path is not a folder."""
    if fcntl is None:
        return
    *_, system, _, _ = ("", "", *folder.name.split("."))  # .NAME.SYSTEM.RANDOM.partial
    with suppress(OSError), _opened_folder(folder) as descriptor:
        if _is_abandoned(folder, descriptor, here=f"{system}." == _system()):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path, descriptor: int, *, here: bool) -> bool:
    """Return True if the process that made a workspace has ended.

    A free lock shows that the process has ended only if that process ran `here`, on this running system, and if the
    file system enforces locks. Otherwise the time since the last change decides, for example for a different machine
    that shares the folder over a network. A lock that this call acquires is held until `descriptor` is closed.
    """
    held = _try_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if held is False:
        return False
    if held and here:
        with _opened_folder(folder) as other:  # some file systems grant every lock
            if _try_lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
                return True
    newest = max(one.lstat().st_mtime for one in (folder, *folder.rglob("*")))
    return time.time() - newest > ABANDONED_S


@contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _system() -> str:
    """Return an identifier of this running system, the same in all its containers: 8 hexadecimal digits and a dot."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:8] + "."


def _prefix(output_path: Path) -> str:
    """Return the prefix of the names of an output path's workspaces, short enough for names of 255 bytes."""
    return f".{os.fsdecode(os.fsencode(output_path.name)[:MAX_NAME])}."


def _locked_folder(output_path: Path) -> tuple[Path, int | None]:
    """Create and lock a workspace; return the folder and the descriptor of the lock, None on systems without locks."""
    while True:
        prefix = _prefix(output_path) + _system()
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=output_path.parent))
        # Until the folder is locked, another process can take it for a leftover and remove it; the loop then makes a
        # new folder.
        with suppress(FileNotFoundError):
            return folder, _lock(folder, lambda: None, folder=True)


def _remove_workspace(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def swap(folder: Path, output_path: Path) -> None:
    """Exchange two folders: atomically on Linux, by way of a third name `.NAME.….old` on other systems."""
    if _exchange(folder, output_path):
        return
    retired = folder.with_suffix(RETIRED)
    output_path.replace(retired)
    try:
        folder.replace(output_path)
    except OSError:
        retired.replace(output_path)
        raise
    retired.replace(folder)


INDIVISIBLE.update(function.__code__ for function in (_locked_folder, _remove_workspace, swap))


def is_swapping(output_path: Path) -> bool:
    """Return True if `output_path` is a folder, or if `swap` is about to put a folder there."""
    output_path = output_path.resolve()
    return any(output_path.parent.glob(f"{glob.escape(_prefix(output_path))}*{RETIRED}")) or os.path.isdir(output_path)


def _exchange(one: Path, other: Path) -> bool:
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library older than 2018
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def home_folder() -> Path | None:
    """Return the user's home folder; None if it does not exist, as in some containers."""
    with suppress(RuntimeError):  # HOME is not set, and the system does not list the user
        if (home := Path.home()).is_absolute() and home.is_dir():
            return home
    return None


def cache_folder(kind: str) -> Path:
    """Return the folder for cached files of a kind, by the XDG Base Directory rules; do not create it.

    A relative XDG_CACHE_HOME is ignored, as those rules demand.

    Raises:
        FileNotFoundError: The user has no home folder, so nothing can be cached.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():
        if (home := home_folder()) is None:
            why = "the user has no home folder; set XDG_CACHE_HOME to a folder, or HOME"
            raise FileNotFoundError(errno.ENOENT, why, os.path.join("~", ".cache", "e3d_deploy"))
        folder = home / ".cache"
    return folder / "e3d_deploy" / kind


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = lambda: None) -> Iterator[None]:
    """Hold the lock of a file or a folder while the block runs.

    A missing file is created, and an empty file is removed when the block ends; a file with content is not removed. The
    kernel releases the lock when the process ends for any reason. On systems without locks, the block runs unlocked.

    Args:
        waiting: called before waiting for another process; None raises an error instead of waiting.

    Raises:
        BlockingIOError: `waiting` is None, and another process holds the lock or the path cannot be locked.
    """
    folder = path.is_dir()
    with _hold(path, waiting, folder=folder):
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                if not folder and path.stat().st_size == 0:
                    path.unlink()


_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _close_inherited_locks() -> None:
    """Close inherited locks in a forked child; otherwise the child would hold them after the parent has ended."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def _hold(path: Path, waiting: Callable[[], None] | None, *, folder: bool) -> Iterator[None]:
    descriptor = _lock(path, waiting, folder=folder)
    if descriptor is not None:
        _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(path: Path, waiting: Callable[[], None] | None, *, folder: bool) -> int | None:
    """Return a descriptor that holds the lock until it is closed; None if the system has no locks."""
    if fcntl is None:
        if waiting is None:
            raise BlockingIOError(f"{path}: cannot be locked")
        return None
    while True:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held = _try_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if waiting is None and not held:
                raise BlockingIOError(f"{path}: another process holds its lock, or it cannot be locked")
            if held is False and waiting is not None:
                waiting()
                _try_lock(descriptor, fcntl.LOCK_EX)
            # The last holder may have removed the file in the meantime; the loop then locks the new file of this name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int, how: int) -> bool | None:
    """Lock an open file; return False if another process holds the lock, and None if the file cannot be locked."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
