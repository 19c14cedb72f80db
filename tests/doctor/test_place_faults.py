"""Faults of the cache folder, and telemetry."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from e3d_deploy import files
from e3d_deploy.doctor import contacts
from e3d_deploy.doctor.place_faults import ELSEWHERE, cache_faults, telemetry_faults
from tests.doctor.fakes import only


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the parent of the cache folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cache_folder_that_can_be_made_is_no_fault_and_is_not_made(cache: Path) -> None:
    assert cache_faults() == []
    assert not cache.exists()


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(files, "home_folder", lambda: None)
    assert only(cache_faults(), "cache-homeless").command == ELSEWHERE


@pytest.mark.parametrize("place", ["/proc/cache", "/dev/null/cache"])
def test_a_cache_folder_that_cannot_be_written_is_a_fault(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    fault = only(cache_faults(), "cache-unwritable")
    assert fault.what.startswith(f"{place}/e3d_deploy: the cache cannot be written (")
    assert fault.command == ELSEWHERE


def test_a_home_folder_of_another_user_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: Path, **_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", stat)  # root may look into every folder
    assert "(Permission denied)" in only(cache_faults(), "cache-unwritable").what


def test_a_full_disk_is_a_fault(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    fault = only(cache_faults(), "cache-full")
    assert "has 20 MB free, and engines may need 500 MB" in fault.what
    assert fault.command == ELSEWHERE
    (cache / "e3d_deploy" / "engines" / "4f1d").mkdir(parents=True)
    assert cache_faults()[0].command == "e3d cache rm --all"


@pytest.mark.parametrize(("value", "on"), [("0", True), ("off", True), ("", True), ("1", False), (None, False)])
def test_telemetry_that_is_switched_on_is_a_fault_and_is_reported(
    value: str | None, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if value is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    assert [fault.command for fault in telemetry_faults()] == (["unset ORT_DISABLE_TELEMETRY"] if on else [])
    assert contacts().startswith("ONNX Runtime may report to Microsoft" if on else "none; ")
