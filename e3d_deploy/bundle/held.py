"""Files of a bundle in memory. The bytes that were hashed are the bytes that run, even if the folder changes."""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np

from e3d_deploy.errors import BundleError, BundleMissing
from e3d_deploy.tensors import Content

FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for reading a file; with O_NONBLOCK, opening a pipe without a writer returns, so that it can be refused."""
ALIGNMENT = 64
"""Alignment of file contents in memory (bytes). With a smaller alignment, PyTorch convolutions take a fifth longer."""


class HeldFiles:
    """Contents of files by name; each file is read once."""

    def __init__(self, contents: Mapping[str, Content] | None = None) -> None:
        self._contents = dict(contents or {})

    def __contains__(self, name: str) -> bool:
        return name in self._contents

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __getitem__(self, name: str) -> Content:
        """Return the content of a file, read-only."""
        view = self._contents[name].view()
        view.flags.writeable = False
        return view

    def shared(self, name: str) -> Content:
        """Return the content of a file as writable memory, for a library that requires such memory and makes no copy.

        The caller must not write to the memory, which all users of the bundle share.
        """
        return self._contents[name]

    def only(self, names: Collection[str]) -> "HeldFiles":
        """Return an object with only the given files; the memory of the rest is freed when nothing refers to it."""
        return HeldFiles({name: content for name, content in self._contents.items() if name in names})


class Folder:
    """Open folder: it stays the same folder even if another folder takes its path.

    On systems that cannot open folders, `descriptor` is None and files are opened by their paths.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self.descriptor = path, descriptor

    def replaced(self) -> bool:
        """Return True if the path no longer exists, or leads to another folder."""
        if self.descriptor is None:
            return not self.path.is_dir()
        with suppress(OSError):
            return not os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        return True

    def open(self, name: str) -> FileIO:
        """Open a regular file of the folder.

        Raises:
            BundleError: The file is not a regular file. Reading a pipe or a device might never end.
            OSError: The file cannot be opened.
        """
        if self.descriptor is None:
            descriptor = os.open(self.path / name, FLAGS)
        else:
            descriptor = os.open(name, FLAGS, dir_fd=self.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{self.path / name}: is not a regular file; copy or export the bundle again")
        return FileIO(descriptor)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
        """Yield the names and contents of files.

        All files are opened before the first file is read, so that files removed in between can still be read.

        Raises:
            BundleError: A file is missing, cannot be read, or is not a regular file.
        """
        with ExitStack() as opened:
            files = {}
            for name in names:
                with self._named(name):
                    files[name] = opened.enter_context(self.open(name))
            for name, file in files.items():
                with self._named(name):
                    content = _content(file)
                yield name, content

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BundleError(
                f"{self.path / name}: cannot be read ({error.strerror}); copy or export the bundle again"
            ) from error


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """Open a folder for the duration of the `with` block.

    Raises:
        BundleMissing: Nothing exists at `path`.
        BundleError: `path` is a file, or the folder cannot be opened.
    """
    if not os.path.isdir(path):  # Unlike `Path.is_dir`, this raises no error for invalid or too long names.
        remedy = "give the folder that `e3d export MODEL -o NAME.e3d` made"
        if path.suffix.lower() == ".zip" and os.path.exists(path):
            raise BundleError(
                f"{path}: is a file, and a bundle is a folder; if `e3d pack` wrote the file, unpack it first: "
                f"`e3d unpack {path} -o NAME.e3d`; if it is a PyTorch checkpoint, use `e3d import`"
            )
        if os.path.exists(path):
            raise BundleError(f"{path}: is a file, and a bundle is a folder; {remedy}")
        raise BundleMissing(f"{path}: no such bundle; {remedy}")
    if os.open not in os.supports_dir_fd:
        yield Folder(path, None)
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); copy or export the bundle again") from error
    try:
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _content(file: FileIO) -> Content:
    """Read a file into aligned memory; bytes that are appended during the call are not read."""
    size = os.fstat(file.fileno()).st_size
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    content, done = memory[start : start + size], 0
    while done < len(content) and (count := file.readinto(content.data[done:])):
        done += count
    return content[:done]
