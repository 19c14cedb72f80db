"""Files and folders that are whole or not there, locks, and hashes."""

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
except ImportError:  # Windows, where nothing is locked, and what killed runs left stays
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""Suffix of folders that hold what is being written."""
RETIRED = ".old"
"""Suffix of the third name by which folders change places where the system cannot exchange them."""
ABANDONED_S = 24 * 60 * 60
"""Age from which a workspace that nobody can be seen to hold counts as left behind (seconds)."""
MOST_NAME = 200
"""Bytes of the name of an output path that the name of its workspace takes; systems allow 255 for all of a name."""
MOST_LINKS = 40
"""Links in a row that Linux follows."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a disk without room."""
STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
"""Descriptors that have names of their own."""


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `new_file` does, whoever else writes it.

    Raises:
        OSError: it cannot be written, with its name.
    """
    with naming(path):
        if _is_special(path):  # which needs no folder for temporary files
            with _opened(path) as stream:
                stream.write(content)
            return
    with new_file(path) as partial:
        partial.write_bytes(content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, in the place of a file or a link, whatever the link leads to.

    Raises:
        OSError: it cannot be written, with its name.
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
    """Return True for a descriptor such as `/dev/stdout`, a pipe or a device, which stays where it is.

    Raises:
        IsADirectoryError: it is a folder.
    """
    there = _status(path)
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return _descriptor(path) is not None or (there is not None and not stat.S_ISREG(there.st_mode))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which stands at `path` when the block ends, and nowhere when it fails.

    A file that was there is replaced, and its mode and owner stay. Where `path` is a link, the file that it leads to is
    the one that is made or replaced. A pipe, a device or a descriptor such as `/dev/stdout` stays as well: it gets the
    bytes when the block ends. The file to write has the same name, in a folder of its own.

    Raises:
        OSError: it cannot be written, with the name `path`.
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
    """Give a folder to fill, which stands at `path` when the block ends, and nowhere when it fails.

    Where `path` is a link, the folder that it leads to is the one that is made or filled.

    Raises:
        ConfigError: something other than an empty folder is there, or its parent is not; at the start, before the work.
        OSError: it cannot be written, with the name `path`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: is there already and not an empty folder; choose another")
    place = place_of(path)
    with naming(path), workspace(place) as folder:
        partial = folder / place.name
        partial.mkdir()
        yield partial
        if (there := _status(place)) is not None:
            _keep_mode(partial, there)
            if (
                sys.platform == "win32"
            ):  # other systems replace an empty folder in one step, so that one is always there
                place.rmdir()
        partial.replace(place)


def check_place(path: Path, *, folder: bool = False) -> None:
    """Check that a file can be made at a path, or put in the place of what is there, before any work is done.

    Args:
        folder: check it for a folder instead.

    Raises:
        ConfigError: as `place_of`, or a folder is in the place of a file.
        OSError: it cannot be written, with the name `path`.
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
        with workspace(place):  # as the work will: no question to the system answers for every disk
            pass


def place_of(path: Path, *, make: bool = False) -> Path:
    """Return where a new file or folder will stand, behind links, whose folder is there.

    Args:
        make: make the folder if it is missing.

    Raises:
        ConfigError: the folder is missing, or a file is in its place, or the new one would replace a mount point.
        OSError: the path cannot be looked up, or its folder cannot be made.
    """
    place = Path(os.path.realpath(path))
    subject = f"{path}:" if str(place) == os.path.abspath(path) else f"{path}: leads to {place};"
    if (file := file_above(place)) is not None:
        raise ConfigError(f"{subject} {file} is no folder; choose another place")
    _status(path)
    if (place.is_dir() or place.is_file()) and os.path.ismount(place):
        raise ConfigError(f"{subject} is a mount point, which cannot be replaced; choose another place")
    if make:
        place.parent.mkdir(parents=True, exist_ok=True)
    elif not place.parent.is_dir():
        raise ConfigError(f"{subject} its folder does not exist; make it first")
    return place


def file_above(path: Path) -> Path | None:
    """Return what is in the place of a folder that a path needs, such as a file; None if folders can be there."""
    there = next((folder for folder in path.parents if os.path.lexists(folder)), path)
    return there if path.parents and not there.is_dir() else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise errors of files without a name, or with that of a workspace of `path`, with the name `path`."""
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
    """Return the status of what a path leads to; None if there is nothing, or a link to nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _opened(path: Path) -> BinaryIO:
    """Open something that takes bytes, to write to it.

    A descriptor is written where it stands: opened by its name, a file behind it would be written from its beginning.
    """
    descriptor = _descriptor(path)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "wb")
    return path.open("wb")


def is_stdout(path: Path) -> bool:
    """Return True for a path that names standard output, such as `/dev/stdout`, or a link to it."""
    return _descriptor(path) == 1


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as `/dev/stdout`, or a link to it, names; None for others."""
    text = str(path)
    for _ in range(MOST_LINKS):
        if (match := re.fullmatch(r"/(?:dev|proc/self|proc/thread-self)/fd/(\d{1,9})", text)) is not None:
            return int(match[1])
        if text in STANDARD:
            return STANDARD[text]
        if not os.path.islink(text):
            break
        text = os.path.normpath(os.path.join(os.path.dirname(text), os.readlink(text)))
    return None


def _keep_mode(partial: Path, there: os.stat_result) -> None:
    """Give what is to replace a file or folder its owner, where that is possible, and its mode."""
    with suppress(OSError, AttributeError):  # only root may give files away, and Windows has no owners
        os.chown(partial, there.st_uid, there.st_gid)
    partial.chmod(stat.S_IMODE(there.st_mode))


def sync(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def workspace(output_path: Path) -> Iterator[Path]:
    """Give an empty folder beside `output_path`, gone at the end unless it was renamed.

    Its name is random, and it is locked until the block ends. What killed runs left of theirs goes first, once it is
    certain that they have ended, or after a day without a change.

    Raises:
        OSError: it cannot be made, or the block raised an error of a file in it; with the name `output_path`.
    """
    output_path = output_path.absolute()
    _remove_left(output_path)
    with naming(output_path):
        folder, descriptor = _locked_folder(output_path)
        try:
            yield folder
        finally:
            _remove_workspace(folder, descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder in TMPDIR, gone at the end; as `workspace` does otherwise."""
    output_path = Path(tempfile.gettempdir()) / "e3d_deploy"
    try:
        with workspace(output_path) as folder:
            yield folder
    except OSError as error:
        if error.filename != str(output_path) or error.errno in (errno.EFBIG, errno.EIO):  # with another folder too
            raise
        raise OSError(error.errno, f"{error.strerror}; set TMPDIR to a folder with room", error.filename) from error


def remove_left(folder: Path, names: str) -> None:
    """Remove what killed runs left of files in a folder, by the rule of `workspace`.

    Args:
        names: pattern of the names of the files, such as `step_*.png`.
    """
    for left in folder.glob(f".{names}.*{PARTIAL}"):
        _remove_if_left(left)


def _remove_left(output_path: Path) -> None:
    """Remove the workspaces of an output path whose makers have ended.

    What `swap` put aside stays as long as it may be the only copy.
    """
    prefix = glob.escape(_prefix(output_path))
    lefts = list(output_path.parent.glob(f"{prefix}*{PARTIAL}"))
    if os.path.isdir(output_path):
        lefts += output_path.parent.glob(f"{prefix}*{RETIRED}")
    for left in lefts:
        _remove_if_left(left)


def _remove_if_left(folder: Path) -> None:
    """Remove a workspace if its maker has ended; anything but a folder stays."""
    if fcntl is None:
        return
    *_, system, _, _ = ("", "", *folder.name.split("."))  # .NAME.SYSTEM.RANDOM.partial
    with suppress(OSError), _opened_folder(folder) as descriptor:
        if _is_left(folder, descriptor, here=f"{system}." == _system()):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, descriptor: int, *, here: bool) -> bool:
    """Return True if the maker of a workspace has ended; its lock is held then until the descriptor is closed.

    A lock that can be had proves it where the lock of its maker would show: both run `here`, on the same running
    system, and the file system keeps locks. Otherwise, as with another container that shares the folder over a
    network, age decides.
    """
    held = _try(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if held is False:
        return False
    if held and here:
        with _opened_folder(folder) as other:  # some file systems only pretend to lock
            if _try(other, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
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
    """Return what tells this running system from others, for all of its containers; 8 letters and a dot."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # another system than Linux
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:8] + "."


def _prefix(output_path: Path) -> str:
    """Return the prefix of the workspaces of an output path, cut so that their names fit the file system."""
    return f".{os.fsdecode(os.fsencode(output_path.name)[:MOST_NAME])}."


def _locked_folder(output_path: Path) -> tuple[Path, int | None]:
    """Make the folder of a workspace; return it with the descriptor that holds its lock, if the system has locks."""
    while True:
        prefix = _prefix(output_path) + _system()
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=output_path.parent))
        # Until it was locked, another process could take it for one that was left, and remove it.
        with suppress(FileNotFoundError):
            return folder, _lock(folder, lambda: None, folder=True)


def _remove_workspace(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def swap(folder: Path, output_path: Path) -> None:
    """Let two folders change places: in one instant on Linux, elsewhere by way of a third name, `.NAME.….old`."""
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
    """Return True if a folder that was absent is there by now, or `swap` is about to put one there."""
    output_path = output_path.resolve()
    return any(output_path.parent.glob(f"{glob.escape(_prefix(output_path))}*{RETIRED}")) or os.path.isdir(output_path)


def _exchange(one: Path, other: Path) -> bool:
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system than Linux, or a C library before 2018
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def home_folder() -> Path | None:
    """Return the user's home folder; None where there is none, as in some containers."""
    with suppress(RuntimeError):  # neither HOME nor an entry of the user in the system's list
        if (home := Path.home()).is_absolute() and home.is_dir():
            return home
    return None


def cache_folder(kind: str) -> Path:
    """Return the folder where the desktop's rules put what can be made again.

    A home folder is one that exists: none is made. As those rules say, a relative XDG_CACHE_HOME counts for nothing.

    Raises:
        FileNotFoundError: the user has no home folder, so nothing is to be kept.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():
        if (home := home_folder()) is None:
            why = "the user has no home folder; set XDG_CACHE_HOME to a folder, or HOME"
            raise FileNotFoundError(errno.ENOENT, why, os.path.join("~", ".cache", "e3d_deploy"))
        folder = home / ".cache"
    return folder / "e3d_deploy" / kind


def sha256(path: Path) -> str:
    """Return the hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = lambda: None) -> Iterator[None]:
    """Hold the lock of a file, which exists as long as somebody does, or of a folder.

    The kernel frees it when its process ends, however that ends. Where nothing can be locked, nobody waits. A file that
    holds anything is no file of a lock: it is locked all the same, and stays.

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
            with suppress(FileNotFoundError):
                if not folder and path.stat().st_size == 0:
                    path.unlink()


_held: set[int] = set()
"""Descriptors of locks that this process holds."""


def _let_go() -> None:
    """Close the locks in the child of a fork, which would hold them beyond the end of its parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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
