"""Archives of bundles: always the same bytes, complete or absent, and unpacked to exactly the packed files."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy import files
from e3d_deploy.bundle import archive
from e3d_deploy.bundle import pack as pack_module
from e3d_deploy.bundle.archive import END, entry
from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.bundle.pack import pack, unpack
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle
from tests.manifests import rewrite, sidecar
from tests.tools import contents

Entries = dict[str, bytes]


@pytest.fixture
def packed(bundle_path: Path, tmp_path: Path) -> Path:
    return pack(Bundle.open(bundle_path), tmp_path / "tiny.e3d.zip")


@pytest.fixture
def with_engine(bundle_path: Path) -> Bundle:
    """Return a bundle with a plan, in the form that `e3d build` writes."""
    bundle = Bundle.open(bundle_path)
    (bundle_path / "engines").mkdir()
    files = {}
    for name in ("engines/step.tensorrt.plan", "engines/step.tensorrt.json"):
        (bundle_path / name).write_bytes(b"native code")
        files[name] = sha256(bundle_path / name)
    rewrite(
        bundle_path,
        engines={"step.tensorrt": sidecar()},
        verification={"tensorrt": Verification(), "torch": Verification()},
        files={**bundle.manifest.files, **files},
    )
    return Bundle.open(bundle_path)


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    """Write an archive of the given entries; zipfile warns if a name occurs twice."""
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for info, content in entries:
            opened.writestr(info, content)


def plain(entries: Entries) -> list[tuple[zipfile.ZipInfo, bytes]]:
    return [(entry(name, len(content)), content) for name, content in entries.items()]


def refused(path: Path, match: str, *, code: int = 5, **options: Any) -> None:
    """Check that unpacking raises an error with this exit code and leaves no files behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(BundleError, match=match) as caught:
        unpack(path, path.parent / "out.e3d", **options)
    assert caught.value.exit_code == code
    assert str(path.name) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


def test_an_unpacked_bundle_equals_the_packed_one(bundle_path: Path, packed: Path, tmp_path: Path) -> None:
    bundle, dropped = unpack(packed, tmp_path / "out.e3d")
    assert contents(tmp_path / "out.e3d") == contents(bundle_path)
    assert (bundle.path, bundle.digest, dropped) == (tmp_path / "out.e3d", Bundle.open(bundle_path).digest, [])
    assert stat.S_IMODE((tmp_path / "out.e3d").stat().st_mode) == 0o755
    Bundle.open(tmp_path / "out.e3d")


def test_the_same_bundle_gives_the_same_bytes(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _ = unpack(packed, tmp_path / "out.e3d")
    for file in bundle.path.iterdir():
        os.utime(file, (1e9, 1e9))
        file.chmod(0o600)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(0))
    assert pack(bundle, tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as opened:
        infos = opened.infolist()
    names = [info.filename for info in infos]
    assert names == ["manifest.json", *sorted(names[1:])]
    assert {(info.date_time, info.compress_type, info.extra) for info in infos} == {((1980, 1, 1, 0, 0, 0), 0, b"")}


def test_engines_are_not_packed_by_default(with_engine: Bundle, tmp_path: Path) -> None:
    bundle, dropped = unpack(pack(with_engine, tmp_path / "a.zip"), tmp_path / "out.e3d")
    assert dropped == []
    assert bundle.manifest.engines == {}
    assert set(bundle.manifest.verification) == {"torch"}
    assert not (bundle.path / "engines").exists()


def test_packed_engines_are_unpacked_only_if_they_are_trusted(with_engine: Bundle, tmp_path: Path) -> None:
    path = pack(with_engine, tmp_path / "a.zip", engines=True)
    bundle, dropped = unpack(path, tmp_path / "out.e3d")
    assert dropped == ["step.tensorrt"]
    assert bundle.manifest.engines == {}
    assert not (bundle.path / "engines").exists()
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    bundle, dropped = unpack(path, tmp_path / "trusted.e3d", trust_engines=True)
    assert dropped == []
    assert contents(bundle.path) == contents(with_engine.path)


def test_nothing_is_overwritten_without_the_option(packed: Path, bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    for call in (lambda: pack(bundle, packed), lambda: unpack(packed, bundle_path)):
        with pytest.raises(ConfigError, match="already exists; give --overwrite"):
            call()
    (bundle_path / "extra").touch()
    unpack(packed, bundle_path, overwrite=True)
    assert not (bundle_path / "extra").exists()
    pack(Bundle.open(bundle_path), packed, overwrite=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError, match="is a folder; choose another name"):
        pack(bundle, folder, overwrite=True)
    with pytest.raises(ConfigError, match="already exists and is not a bundle"):
        unpack(packed, folder, overwrite=True)
    for call in (lambda: pack(bundle, tmp_path / "no" / "a.zip"), lambda: unpack(packed, tmp_path / "no" / "a.e3d")):
        with pytest.raises(ConfigError, match="its folder does not exist"):
            call()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "tiny.e3d", "tiny.e3d.zip"}


def test_a_link_stays_and_the_bundle_or_archive_behind_it_is_replaced(
    packed: Path, bundle_path: Path, tmp_path: Path
) -> None:
    link, archive_link = tmp_path / "link.e3d", tmp_path / "link.zip"
    link.symlink_to(bundle_path.name)
    archive_link.symlink_to(packed.name)
    (bundle_path / "extra").touch()
    unpack(packed, link, overwrite=True)
    pack(Bundle.open(link), archive_link, overwrite=True)
    assert link.is_symlink()
    assert archive_link.is_symlink()
    assert not (bundle_path / "extra").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"link.e3d", "link.zip", "tiny.e3d", "tiny.e3d.zip"}


def test_no_archive_is_written_into_the_bundle(bundle_path: Path) -> None:
    before = contents(bundle_path)
    for name in ("model.safetensors", "new.zip"):
        with pytest.raises(
            ConfigError, match=rf"{name}: is inside the bundle .*, which is being packed; choose another path"
        ):
            pack(Bundle.open(bundle_path), bundle_path / name, overwrite=True)
    assert contents(bundle_path) == before


def test_a_missing_engine_is_refused(with_engine: Bundle, tmp_path: Path) -> None:
    (with_engine.path / "engines" / "step.tensorrt.plan").unlink()
    with pytest.raises(
        BundleError, match=r"step\.tensorrt\.plan: is missing; build the engines again, or pack without"
    ):
        pack(Bundle.open(with_engine.path), tmp_path / "a.zip", engines=True)
    pack(Bundle.open(with_engine.path), tmp_path / "a.zip")


def test_trusted_engines_are_hashed(with_engine: Bundle, tmp_path: Path) -> None:
    path = pack(with_engine, tmp_path / "a.zip", engines=True)
    write(path, plain(entries_of(path) | {"engines/step.tensorrt.plan": b"another code"}))
    refused(path, r"step\.tensorrt\.plan: altered or truncated", trust_engines=True)


def test_a_workspace_that_another_process_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace that is not locked yet looks like a leftover of a killed run."""
    make, removed = tempfile.mkdtemp, []

    def make_and_lose(**options: Any) -> str:
        folder = make(**options)
        if len(removed) < 2:
            removed.append(folder)
            os.rmdir(folder)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    with files.workspace(tmp_path / "target") as folder:
        assert len(removed) == 2
        (folder / "file").touch()


def test_a_workspace_waits_for_a_process_that_takes_it_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, threads = tempfile.mkdtemp, []

    def make_and_let_it_be_found(**options: Any) -> str:
        folder = Path(make(**options))
        if not threads:
            lock = files._lock(folder, None, folder=True)
            assert lock is not None

            def remove() -> None:
                time.sleep(0.1)
                folder.rmdir()
                os.close(lock)

            threads.append(threading.Thread(target=remove))
            threads[0].start()
        return str(folder)

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_let_it_be_found)
    with files.workspace(tmp_path / "target") as folder:
        threads[0].join()
        (folder / "file").touch()


def test_an_engine_that_changes_while_it_is_packed_is_not_packed(with_engine: Bundle, tmp_path: Path) -> None:
    """Only engines are read from disk; the other files are packed from memory."""
    (with_engine.path / "engines" / "step.tensorrt.plan").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"step\.tensorrt\.plan: changed during packing"):
        pack(with_engine, tmp_path / "a.zip", engines=True)
    assert not list(tmp_path.glob("*a.zip*"))


def test_a_bundle_too_large_for_an_archive_is_refused(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="but an archive can hold 1,000; copy the folder"):
        pack(Bundle.open(bundle_path), tmp_path / "a.zip")


def test_a_device_unpacks_without_pytorch(packed: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "click", "rich", "safetensors", "onnxruntime"):
    sys.modules[name] = None
from pathlib import Path
from e3d_deploy.bundle.pack import pack, unpack
bundle, _ = unpack(Path({str(packed)!r}), Path({str(tmp_path / "out.e3d")!r}))
pack(bundle, Path({str(tmp_path / "again.zip")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


NAMES = [
    "/etc/passwd",
    "../step.onnx",
    "engines/../../step.onnx",
    "..",
    "./step.onnx",
    "engines//step.onnx",
    "engines/",
    "..\\step.onnx",
    "C:step.onnx",
    "C:/step.onnx",
    "~/step.onnx",
    ".bashrc",
    "step.onnx.",
    "step onnx",
    "stép.onnx",
    "",
    "n" * 201,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder_are_refused(packed: Path, name: str) -> None:
    """Such names are refused even if the manifest lists them."""
    entries = entries_of(packed)
    manifest = json.loads(entries["manifest.json"])
    manifest["files"][name] = manifest["files"]["step.onnx"]
    entries |= {"manifest.json": json.dumps(manifest).encode(), name: entries["step.onnx"]}
    write(packed, plain(entries))
    refused(packed, "not a valid name within a folder")


def test_a_name_with_a_null_byte_is_refused(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes().replace(b"step.onnx", b"step.onn\0"))
    refused(packed, "not a valid name within a folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_special_files_are_refused(packed: Path, kind: int) -> None:
    infos = plain(entries_of(packed))
    infos[1][0].external_attr = (kind | 0o777) << 16
    write(packed, [(infos[1][0], b"/etc/passwd") if number == 1 else one for number, one in enumerate(infos)])
    refused(packed, "is a link or another special file")


def test_a_duplicate_name_is_refused(packed: Path) -> None:
    infos = plain(entries_of(packed))
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(packed, [*infos, (entry("step.onnx", 1), b"x")])
    refused(packed, r"contains 'step\.onnx' twice")


def test_names_that_differ_only_in_case_are_refused(packed: Path) -> None:
    write(packed, plain(entries_of(packed) | {"Step.ONNX": b"x"}))
    refused(packed, r"contains 'step\.onnx' and 'Step\.ONNX', which differ only in case")


def test_a_name_of_both_a_file_and_a_folder_is_refused(packed: Path) -> None:
    write(packed, plain(entries_of(packed) | {"STEP.onnx/x": b"x"}))
    refused(packed, r"contains 'step\.onnx' both as a file and as a folder")


def test_a_file_that_the_manifest_does_not_list_is_refused(packed: Path) -> None:
    write(packed, plain(entries_of(packed) | {"setup.py": b"x"}))
    refused(packed, r"contains a file that its manifest does not list, setup\.py")


@pytest.mark.parametrize("name", ["clip.onnx", "manifest.json", "model.safetensors"])
def test_a_file_that_the_archive_lacks_is_named(packed: Path, name: str) -> None:
    entries = entries_of(packed)
    del entries[name]
    write(packed, plain(entries))
    refused(packed, "has no manifest.json" if name == "manifest.json" else f"lacks a file of its manifest, {name}")


def test_a_file_with_another_hash_is_refused(packed: Path) -> None:
    entries = entries_of(packed)
    write(packed, plain(entries | {"clip.onnx": entries["step.onnx"]}))
    refused(packed, r"tiny\.e3d\.zip/clip\.onnx: altered or truncated, its SHA-256 is")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not a manifest"),
        (b"\xff\xfe", "not a manifest"),
        (b"[]", "not a manifest"),
        (b'{"schema": 99}', "schema 99, this version reads 1 and 2"),
        (b'{"schema": 1}', "lacks batch"),
        (b"[" * 100_000, "not a manifest"),
        (b'{"schema": 1, "x": NaN}', r"is not a manifest \(got NaN, expected a finite number\)"),
    ],
    ids=range(7),
)
def test_an_invalid_manifest_is_refused(packed: Path, text: bytes, match: str) -> None:
    write(packed, plain(entries_of(packed) | {"manifest.json": text}))
    refused(packed, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"rounding": {"predictions": float("nan"), "states": 0.0}},
            r"is not a manifest \(got NaN, expected a finite number",
        ),
        ({"config": {"patch_size": 5}}, "config: lacks image_size, channels, hidden"),
        ({"files": {"model.safetensors": 7}}, r"files\.model\.safetensors: got 7, expected text"),
        ({"engines": [], "files": {}}, r"engines: got \[\], expected an object"),
    ],
    ids=range(4),
)
def test_a_manifest_with_wrong_values_is_refused(packed: Path, changes: dict[str, Any], match: str) -> None:
    entries = entries_of(packed)
    text = json.dumps(json.loads(entries["manifest.json"]) | changes).encode()
    write(packed, plain(entries | {"manifest.json": text}))
    refused(packed, match)


def test_a_huge_manifest_is_not_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "MAX_MANIFEST_BYTES", 100)
    refused(packed, r"its manifest\.json is [\d,]+ bytes")


def test_too_many_entries_are_refused_before_they_are_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(packed, plain(entries_of(packed) | {f"n{number}": b"" for number in range(1001)}))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    refused(packed, r"has 10\d\d entries, a bundle has at most 1000")


def test_a_compressed_bomb_is_refused(packed: Path) -> None:
    bomb = entry("clip.onnx", 0)
    bomb.compress_type = zipfile.ZIP_DEFLATED
    others = [one for one in plain(entries_of(packed)) if one[0].filename != "clip.onnx"]
    write(packed, [*others, (bomb, bytes(50_000_000))])
    assert packed.stat().st_size < 2_000_000
    refused(packed, r"clip\.onnx is compressed")


def patched(path: Path, name: str, field: slice, value: int) -> None:
    """Change a field in the record of an entry, in the directory at the end of the archive."""
    raw = bytearray(path.read_bytes())
    line = raw.rindex(b"PK\x01\x02", 0, raw.rindex(name.encode()))
    raw[line + field.start : line + field.stop] = value.to_bytes(field.stop - field.start, "little")
    path.write_bytes(raw)


FLAGS, PACKED_SIZE, SIZE, OFFSET = slice(8, 10), slice(20, 24), slice(24, 28), slice(42, 46)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        (FLAGS, 1, "is encrypted"),
        (FLAGS, 0x41, "is encrypted"),
        (FLAGS, 8, "has fields that `e3d pack` does not write"),
        (SIZE, 2_000_000_000, "sizes contradict each other"),
        (PACKED_SIZE, 10, "sizes contradict each other"),
        (OFFSET, 0, "does not begin where the entry before it ends"),
        (SIZE, 0xFFFFFFFF, "sizes contradict each other|damaged"),
    ],
    ids=range(7),
)
def test_a_directory_record_that_contradicts_its_entry_is_refused(
    packed: Path, field: slice, value: int, match: str
) -> None:
    patched(packed, "step.onnx", field, value)
    refused(packed, match)


def test_two_sizes_that_are_wrong_in_the_same_way_are_refused(packed: Path) -> None:
    """Otherwise the unpacked files could be larger than the archive."""
    for field in (SIZE, PACKED_SIZE):
        patched(packed, "step.tensorrt.onnx", field, 1_900_000_000)  # the last entry
    refused(packed, r"its entries end at byte [12],[\d,]+, expected")


def test_entries_that_share_bytes_are_refused(packed: Path) -> None:
    """Many entries that share the same bytes would be a zip bomb that needs no compression."""
    with zipfile.ZipFile(packed) as opened:
        place = opened.getinfo("clip.onnx").header_offset
    patched(packed, "step.onnx", OFFSET, place)
    refused(packed, r"\.onnx does not begin where the entry before it ends")


def test_zip64_is_refused(packed: Path) -> None:
    entries = entries_of(packed)
    with zipfile.ZipFile(packed, "w") as opened:
        for name, content in entries.items():
            with opened.open(entry(name, len(content)), "w", force_zip64=name == "step.onnx") as target:
                target.write(content)
    refused(packed, "entry|its entries end|has fields")
    write(packed, plain(entries))
    raw = packed.read_bytes()
    end = len(raw) - END.size
    huge = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12) + (2**40).to_bytes(8, "little") * 4
    locator = b"PK\x06\x07" + bytes(4) + end.to_bytes(8, "little") + bytes(4)
    packed.write_bytes(raw[:end] + huge + locator + raw[end:])
    refused(packed, "is a zip64 archive")


def test_sizes_beyond_the_limit_are_refused(packed: Path) -> None:
    total = sum(len(content) for name, content in entries_of(packed).items() if name != "manifest.json")
    refused(packed, f"contains {total:,} bytes, but the limit is {total - 1:,}", most_bytes=total - 1)
    unpack(packed, packed.parent / "out.e3d", most_bytes=total)


def test_a_changed_byte_is_detected(packed: Path) -> None:
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 1
    packed.write_bytes(raw)
    refused(packed, "damaged .Bad CRC-32")


def test_bytes_around_the_entries_are_refused(packed: Path) -> None:
    raw = packed.read_bytes()
    for changed in (b"#!/bin/sh\n" + raw, raw + b"\n", raw[:-2] + b"\x05\x00hello"):
        packed.write_bytes(changed)
        refused(packed, "has bytes that belong to no entry|truncated, or has data after its end|is not a zip archive")
    entries = entries_of(packed) if zipfile.is_zipfile(packed) else {}
    assert entries  # zipfile itself accepts the last of these archives


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    refused(path, "no such file", code=2)
    for content in (b"", b"PK", b"text" * 100, bytes(5000), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        refused(path, "not a zip archive|truncated|has no manifest.json")
    path.unlink()
    path.mkdir()
    refused(path, "is not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, "is not a regular file")


def test_a_truncated_archive_is_refused_at_every_length(packed: Path) -> None:
    raw = packed.read_bytes()
    lengths = {*range(0, len(raw), len(raw) // 60), *range(len(raw) - 60, len(raw))}
    for length in lengths:
        packed.write_bytes(raw[:length])
        refused(packed, "truncated|not a zip archive")


def test_a_damaged_archive_is_refused_or_gives_the_whole_bundle(packed: Path, tmp_path: Path) -> None:
    """Bytes are changed at random, most of them in headers; the archive is refused, or unpacks to the same bundle."""
    raw, rng = packed.read_bytes(), random.Random(0)
    expected = entries_of(packed)
    with zipfile.ZipFile(packed) as opened:
        starts = [info.header_offset for info in opened.infolist()]
        headers = [*(start + byte for start in starts for byte in range(40)), *range(opened.start_dir, len(raw))]
    outcomes = {True: 0, False: 0}
    for _ in range(400):
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 4))):
            changed[rng.choice(headers) if rng.random() < 0.9 else rng.randrange(len(raw))] = rng.randrange(256)
        packed.write_bytes(changed)
        try:
            bundle, _ = unpack(packed, tmp_path / "out.e3d")
        except BundleError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert contents(bundle.path) == expected
            shutil.rmtree(bundle.path)
    assert outcomes[False] > 200
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.e3d", "tiny.e3d.zip"}


def test_an_error_while_unpacking_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(packed, tmp_path / "out.e3d")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.e3d", "tiny.e3d.zip"}


def test_the_workspace_of_a_running_process_is_not_removed(packed: Path, tmp_path: Path) -> None:
    """Only a lock distinguishes the workspace of a running process from a leftover of a killed run."""

    def meanwhile(_: str) -> None:
        if not (tmp_path / "out.e3d").exists():
            unpack(packed, tmp_path / "out.e3d")

    unpack(packed, tmp_path / "o.e3d", progress=meanwhile)
    assert contents(tmp_path / "o.e3d") == contents(tmp_path / "out.e3d")

    def same_target(_: str) -> None:
        if not done:
            done.append(unpack(packed, tmp_path / "new.e3d"))

    done: list[Any] = []
    with pytest.raises(ConfigError, match=r"new\.e3d: was created by another process during the export"):
        unpack(packed, tmp_path / "new.e3d", progress=same_target)
    assert contents(tmp_path / "new.e3d") == contents(tmp_path / "o.e3d")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_bundle_is_complete_before_and_after_its_replacement(
    packed: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Without `at_once`, the system cannot exchange two folders, and three renames are used instead."""
    if not at_once:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    else:
        assert files._exchange(bundle_path, packed)
        assert files._exchange(packed, bundle_path)
    (bundle_path / "extra").touch()
    expected = entries_of(packed)
    unpack(packed, bundle_path, overwrite=True)
    assert contents(bundle_path) == expected
    assert {path.name for path in packed.parent.iterdir()} == {"tiny.e3d", "tiny.e3d.zip"}


def kill_at_random(command: list[str], seconds: float) -> bool:
    """Start a command, and kill it `seconds` after its first line of output.

    Returns:
        True if the command was still running.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def large(bundle_path: Path) -> Bundle:
    """Return the tiny bundle with additional files, so large that a command can be killed while it writes them."""
    bundle = Bundle.open(bundle_path)
    files = dict(bundle.manifest.files)
    for number in range(4):
        name = f"ballast.{number}"
        (bundle_path / name).write_bytes(random.Random(number).randbytes(4_000_000))
        files[name] = sha256(bundle_path / name)
    rewrite(bundle_path, files=files)
    return Bundle.open(bundle_path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pack", "unpack"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_run_leaves_no_output_or_a_complete_one(
    bundle_path: Path, tmp_path: Path, verb: str, overwrite: bool
) -> None:
    bundle = large(bundle_path)
    packed = pack(bundle, tmp_path / "packed.zip")
    folder = tmp_path / "work"
    folder.mkdir()
    target = folder / "target"
    source = "Bundle.open(Path(sys.argv[1]))" if verb == "pack" else "Path(sys.argv[1])"
    code = f"""
import sys
from pathlib import Path
from e3d_deploy.runtime import Bundle
from e3d_deploy.bundle.pack import pack, unpack
source = {source}
print("begun", flush=True)
{verb}(source, Path(sys.argv[2]), overwrite={overwrite})
"""
    command = [sys.executable, "-c", code, str(bundle.path if verb == "pack" else packed), str(target)]

    def check() -> bool:
        if not target.exists():
            return False
        if verb == "pack":
            assert target.read_bytes() == packed.read_bytes()
        else:
            assert contents(target) == contents(bundle.path)
        return True

    def run(seconds: float) -> bool:
        if not overwrite and target.exists():
            target.unlink() if verb == "pack" else shutil.rmtree(target)
        return kill_at_random(command, seconds)

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        assert process.wait() == 0
    whole = time.monotonic() - started
    rng = random.Random(1)
    killed = leftovers = 0  # numbers of runs that were killed, and after which a leftover existed
    for _ in range(20):
        killed += run(rng.uniform(0, 0.9 * whole))
        leftovers += any(".partial" in path.name for path in folder.iterdir())
        assert check() or not overwrite
    assert killed >= 13
    assert leftovers >= 5
    if not overwrite and target.exists():
        target.unlink() if verb == "pack" else shutil.rmtree(target)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert check()
    assert [path.name for path in folder.iterdir()] == ["target"]


def test_archives_of_the_maximum_size_need_no_zip64() -> None:
    """zipfile writes zip64 headers for files above 1/1.05 of the zip limit; no file of allowed size is that large."""
    assert archive.MAX_BYTES * 1.05 < zipfile.ZIP64_LIMIT


def test_progress_names_files_and_shares(bundle_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pack(large(bundle_path), tmp_path / "a.zip", progress=said.append)
    assert said[0] == "manifest.json"
    assert "ballast.0, 26%" in said
    unpacked: list[str] = []
    keep: Callable[[str], None] = unpacked.append
    unpack(tmp_path / "a.zip", tmp_path / "out.e3d", progress=keep)
    assert "ballast.3, 100%" in unpacked
