"""Opening of bundles, whose files are read once, even if another bundle replaces them during the reading."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy.bundle import folder, held
from e3d_deploy.bundle.folder import ATTEMPTS, MODEL, REFERENCE
from e3d_deploy.bundle.held import Folder, HeldFiles
from e3d_deploy.bundle.pack import pack
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, ResourceLimit
from e3d_deploy.files import swap
from e3d_deploy.runtime import Bundle
from e3d_deploy.tensors import Content
from tests.runtime.backends.test_contract_files import another, overwrite


def before_reading(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], *, times: int = 1) -> list[int]:
    """Run `action` after the manifest is read and before the remaining files are read.

    Args:
        times: number of attempts to read a bundle for which the action runs.

    Returns:
        A list that gets an item at each attempt.
    """
    read, calls = Folder.read, list[int]()

    def after(self: Folder, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
        calls.append(1)
        if len(calls) <= times:
            action()
        return read(self, names)

    monkeypatch.setattr(Folder, "read", after)
    return calls


def consistent(bundle: Bundle, path: Path) -> bool:
    """Return True if an opened bundle equals the bundle in a folder, including the content of all files."""
    whole = Bundle.open(path)
    same = all(bundle.held[name].tobytes() == whole.held[name].tobytes() for name in whole.held)
    return bundle.identity == whole.identity and bundle.manifest == whole.manifest and same


@pytest.mark.parametrize("folders_can_be_held", [True, False])
def test_opening_a_bundle_during_its_replacement_gives_the_old_or_the_new_one(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders_can_be_held: bool
) -> None:
    """Replace the bundle like `e3d export --overwrite`: exchange the two folders, and remove the old one."""
    if not folders_can_be_held:
        monkeypatch.setattr(os, "supports_dir_fd", set())
    new = another(bundle_path, tmp_path / "new.e3d")
    copy = shutil.copytree(new, tmp_path / "copy.e3d")

    def publish() -> None:
        swap(new, bundle_path)
        shutil.rmtree(new)

    before_reading(monkeypatch, publish)
    assert consistent(Bundle.open(bundle_path), copy)


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="this system cannot hold folders open")
def test_a_bundle_that_is_moved_while_it_is_open_is_read_completely(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, copy = another(bundle_path, tmp_path / "new.e3d"), shutil.copytree(bundle_path, tmp_path / "copy.e3d")
    calls = before_reading(monkeypatch, lambda: swap(new, bundle_path))
    bundle = Bundle.open(bundle_path)
    assert len(calls) == 1
    assert consistent(bundle, copy)


def test_a_bundle_that_is_removed_once_its_files_are_open_is_read(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, content = shutil.copytree(bundle_path, tmp_path / "copy.e3d"), held._content

    def removed(file: FileIO) -> Content:
        shutil.rmtree(bundle_path, ignore_errors=True)
        return content(file)

    with monkeypatch.context() as patched:
        patched.setattr(held, "_content", removed)
        bundle = Bundle.open(bundle_path)
    assert not bundle_path.exists()
    assert consistent(bundle, copy)


def test_a_bundle_that_is_replaced_at_every_attempt_is_refused(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "supports_dir_fd", set())
    monkeypatch.setattr("e3d_deploy.bundle.folder.PAUSE_S", 0)
    new = another(bundle_path, tmp_path / "new.e3d")
    calls = before_reading(monkeypatch, lambda: swap(new, bundle_path), times=1000)
    with pytest.raises(BundleError, match="altered or truncated"):
        Bundle.open(bundle_path)
    assert len(calls) == ATTEMPTS


def published_in_steps(bundle_path: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the bundle by renames, as on a system that cannot exchange folders.

    The old folder is moved away at once, and the new one takes its place in the first pause between two attempts.

    Returns:
        A list that collects all pauses (s).
    """
    retired, pauses = bundle_path.with_name(f".{bundle_path.name}.abc.old"), list[float]()
    bundle_path.replace(retired)

    def pause(seconds: float) -> None:
        if not pauses:
            new.replace(bundle_path)
            shutil.rmtree(retired)
        pauses.append(seconds)

    monkeypatch.setattr("time.sleep", pause)
    return pauses


@pytest.mark.parametrize("linked", [False, True])
def test_opening_waits_for_a_bundle_whose_path_is_absent_for_a_moment(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    new = another(bundle_path, tmp_path / "new.e3d")
    copy, path = shutil.copytree(new, tmp_path / "copy.e3d"), bundle_path
    if linked:
        path = tmp_path / "links" / "current"
        path.parent.mkdir()
        path.symlink_to(bundle_path)
    pauses = published_in_steps(bundle_path, new, monkeypatch)
    assert consistent(Bundle.open(path), copy)
    assert len(pauses) == 1


def test_a_missing_bundle_is_refused_at_once(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waits"))
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(bundle_path.with_name("absent.e3d"))


def test_a_damaged_bundle_is_refused_at_once(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite(bundle_path)
    calls = before_reading(monkeypatch, lambda: None)
    with pytest.raises(BundleError, match=r"model\.safetensors: altered or truncated"):
        Bundle.open(bundle_path)
    assert len(calls) == 1


def test_the_config_is_read_from_the_bytes_that_were_hashed(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, config = shutil.copytree(bundle_path, tmp_path / "copy.e3d"), folder._config

    def emptied(*given: Any) -> ModelConfig:
        os.truncate(bundle_path / MODEL, 0)
        return config(*given)

    with monkeypatch.context() as patched:
        patched.setattr(folder, "_config", emptied)
        bundle = Bundle.open(bundle_path)
    assert consistent(bundle, copy)


def test_files_that_do_not_fit_into_memory_are_a_resource_limit(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> Content:
        raise MemoryError

    monkeypatch.setattr(held, "_content", no_memory)
    with pytest.raises(ResourceLimit, match=r"tiny\.e3d: its files do not fit into memory; close other programs"):
        Bundle.open(bundle_path)


def test_contents_in_memory_are_read_only(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    with pytest.raises(ValueError, match="read-only"):
        bundle.held[MODEL][0] = 1
    assert set(bundle.holding([MODEL]).held) == {MODEL}
    assert REFERENCE in bundle.held
    assert "held=" not in repr(bundle)


def test_contents_are_aligned_in_memory(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert {bundle.held[name].ctypes.data % held.ALIGNMENT for name in bundle.held} == {0}


def test_shared_memory_is_the_memory_that_was_hashed() -> None:
    files = HeldFiles({"a": np.zeros(4, np.uint8)})
    assert files.shared("a").ctypes.data == files["a"].ctypes.data


def test_an_archive_contains_the_files_that_were_opened(bundle_path: Path, tmp_path: Path) -> None:
    expected = pack(Bundle.open(bundle_path), tmp_path / "expected.zip").read_bytes()
    bundle = Bundle.open(bundle_path)
    overwrite(bundle_path)
    assert pack(bundle, tmp_path / "found.zip").read_bytes() == expected
    shutil.rmtree(bundle_path)
    assert pack(bundle, tmp_path / "again.zip").read_bytes() == expected
