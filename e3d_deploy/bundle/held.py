"""Files of a bundle in memory, so that what was hashed is what runs, whatever becomes of the folder."""

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
"""Flags that open a file for reading; a pipe without a writer is opened at once, to be refused."""
ALIGNMENT = 64
"""Alignment of a content in memory (bytes). PyTorch's convolutions take a fifth longer on weights that are less aligned
than in a file that is mapped."""


class HeldFiles:
    """Contents of files by name, as they were read once."""

    def __init__(self, contents: Mapping[str, Content] | None = None) -> None:
        self._contents = dict(contents or {})

    def __contains__(self, name: str) -> bool:
        return name in self._contents

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __getitem__(self, name: str) -> Content:
        """Return a content, which cannot be written."""
        view = self._contents[name].view()
        view.flags.writeable = False
        return view

    def shared(self, name: str) -> Content:
        """Return the same memory for a library that works on it in place and takes only memory that can be written.

        Nobody may write to it: every other reader of the bundle would compute with that.
        """
        return self._contents[name]

    def only(self, names: Collection[str]) -> "HeldFiles":
        """Return those of the names alone; the memory of the others is freed when nobody else holds it."""
        return HeldFiles({name: content for name, content in self._contents.items() if name in names})


class Folder:
    """A folder that stays the same one when another takes its name, where the system can hold folders open."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self.descriptor = path, descriptor

    def replaced(self) -> bool:
        """Return True if its path is gone, or leads to another folder."""
        if self.descriptor is None:
            return not self.path.is_dir()
        with suppress(OSError):
            return not os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        return True

    def open(self, name: str) -> FileIO:
        """Open a regular file of the folder.

        Raises:
            BundleError: it is something else: a pipe has no end, and a device may have none.
            OSError: it cannot be opened.
        """
        if self.descriptor is None:
            descriptor = os.open(self.path / name, FLAGS)
        else:
            descriptor = os.open(name, FLAGS, dir_fd=self.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{self.path / name}: is no regular file; copy or export the bundle again")
        return FileIO(descriptor)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
        """Yield files with their contents. All are opened before the first is read, so that none is removed meanwhile.

        Raises:
            BundleError: one of them is missing, cannot be read, or is no regular file.
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
    """Hold a folder open.

    Raises:
        BundleError: there is none, or it cannot be opened.
    """
    if not os.path.isdir(path):  # which takes names that are too long, or that no file can have
        remedy = "give the folder that `e3d export MODEL -o NAME.e3d` made"
        if path.suffix.lower() == ".zip" and os.path.exists(path):
            raise BundleError(
                f"{path}: is a file, and a bundle is a folder; if `e3d pack` wrote it, unpack it first: "
                f"`e3d unpack {path} -o NAME.e3d`; a checkpoint of PyTorch becomes a model by `e3d import`"
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
    """Read a file into memory of its size; what is appended meanwhile is not part of it."""
    size = os.fstat(file.fileno()).st_size
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    content, done = memory[start : start + size], 0
    while done < len(content) and (count := file.readinto(content.data[done:])):
        done += count
    return content[:done]
