"""Files for a borrowed GPU machine: pruned machine code, archives, sizes, and missing packages."""

import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import borrowed
from benchmarks.gpu.borrowed import Limits, Machine
from benchmarks.gpu.call import CALLS
from benchmarks.gpu.fatbin import MAGIC, ZSTANDARD, prune, section
from benchmarks.gpu.lacking import Confiner
from benchmarks.gpu.pack import PROVIDER, archive, distributions, install, shrink_onnxruntime, unpack
from benchmarks.gpu.prepare import of_unknown_version, plan
from benchmarks.gpu.travel import MIB, check_results, check_travel
from e3d_deploy.errors import ResourceLimit

LIMITS = Limits(travel_bytes=1 << 20, files_back=3, file_back_bytes=100, folders_deep=2, call_seconds=600)


# Pruning


def entry(architecture: int, code: bytes, *, packed: bool = True) -> bytes:
    """Return one entry of a fat binary, whose code is compressed with zlib after the magic number of Zstandard."""
    content = ZSTANDARD + zlib.compress(code) if packed else code
    padded = content + bytes(-len(content) % 8)
    head = struct.pack("<HHIQIIIIQQQ", 2, 0x101, 64, len(padded), len(content) * packed, 0, 0, architecture, 0, 0, 0)
    return head + struct.pack("<Q", len(code) if packed else 0) + padded


def library(*groups: list[bytes]) -> bytearray:
    """Return an ELF file with a section of fat binaries, one per group of entries."""
    code = b""
    for group in groups:
        inside = b"".join(group)
        code += struct.pack("<IHHQ", MAGIC, 1, 16, len(inside)) + inside + bytes(8)
    names = b"\0.nv_fatbin\0.shstrtab\0"
    at = 64
    heads = [(0, 0, 0), (1, at, len(code)), (12, at + len(code), len(names))]
    table = at + len(code) + len(names)
    elf = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<Q", table)
    elf = elf.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(heads), 2)
    rows = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, start, size, 0, 0, 8, 0) for name, start, size in heads)
    return bytearray(elf + code + names + rows)


def decompress(data: bytes, length: int) -> bytes:
    plain = zlib.decompress(data[len(ZSTANDARD) :])
    assert len(plain) == length
    return plain


OURS, ATTENTION = b"\0.text.group_norm\0" * 9, b"\0.text.flash_forward\0.text.flash_backward\0" * 9


def test_code_of_other_chips_and_of_uncalled_kernels_is_zeroed() -> None:
    whole = library(
        [entry(80, b"\0.text.other_chip\0"), entry(90, OURS)],
        [entry(90, ATTENTION), entry(90, ATTENTION + OURS), entry(90, b"\0.text.plain\0", packed=False)],
    )
    before, length = bytes(whole), len(whole)
    pruned = prune(whole, 90, uncalled=re.compile(rb"flash"), decompress=decompress)
    assert len(whole) == length
    assert zlib.compress(b"\0.text.other_chip\0") not in whole
    assert zlib.compress(ATTENTION) not in whole
    assert zlib.compress(ATTENTION) in before
    for kept in (zlib.compress(OURS), zlib.compress(ATTENTION + OURS), b".text.plain"):
        assert kept in whole
    changed = [index for index in range(length) if before[index] != whole[index]]
    assert not any(whole[index] for index in changed)
    assert pruned.zeroed_bytes > 0
    assert section(whole, b".nv_fatbin") == section(before, b".nv_fatbin")


def test_code_with_unknown_compression_is_kept() -> None:
    other = b"\x04\x22\x4d\x18" + ATTENTION
    head = struct.pack("<HHIQIIIIQQQQ", 2, 0x101, 64, len(other), len(other), 0, 0, 90, 0, 0, 0, 999)
    whole = library([head + other])
    prune(whole, 90, uncalled=re.compile(rb"flash"), decompress=decompress)
    assert other in whole


def test_a_library_without_code_for_the_chip_is_refused() -> None:
    with pytest.raises(ValueError, match="no machine code for chip 120"):
        prune(library([entry(90, OURS)]), 120, uncalled=re.compile(rb"flash"), decompress=decompress)
    with pytest.raises(ValueError, match="not an ELF file"):
        prune(bytearray(b"MZ" * 100), 90, uncalled=re.compile(rb"flash"), decompress=decompress)
    with pytest.raises(ValueError, match=r"no section \.cuda"):
        section(library([entry(90, OURS)]), b".cuda")


# Archives


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or later")
def test_equal_folders_yield_equal_archives_that_store_equal_files_once(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    content = os.urandom(100_000)
    for name in ("one/weights", "two/weights"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    (folder / "name-1.0.dist-info").mkdir()
    (folder / "name-1.0.dist-info" / "METADATA").write_text("Name: name")
    archive(folder, tmp_path / "p" / "p.tar.xz")
    archive(folder, tmp_path / "q" / "q.tar.xz")
    packed = (tmp_path / "p" / "p.tar.xz").read_bytes()
    assert packed == (tmp_path / "q" / "q.tar.xz").read_bytes()
    assert len(packed) < 1.1 * len(content)
    assert distributions(tmp_path / "p" / "p.tar.xz") == {"name"}
    (made,) = unpack([tmp_path / "p"], tmp_path / "back")
    assert made == tmp_path / "back" / "p"
    assert (made / "one" / "weights").read_bytes() == (made / "two" / "weights").read_bytes() == content


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or later")
def test_an_archive_with_a_path_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with tarfile.open(tmp_path / "p" / "p.tar.xz", "w:xz") as tar:
        tar.add(__file__, "../../outside.py")
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack([tmp_path / "p"], tmp_path / "back")


# Sizes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with a tracked file, a new file, an ignored file and a pack."""
    root = tmp_path / "checkout"
    (root / "pack" / "piece").mkdir(parents=True)
    (root / ".gitignore").write_text("/pack/\nignored\n")
    for name, size in (("tracked", 1000), ("new", 2000), ("ignored", 1 << 22), ("pack/piece/file", 3000)):
        (root / name).write_bytes(bytes(size))
    for command in (["init", "-q"], ["add", "tracked", ".gitignore"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_tracked_new_and_carried_files_are_counted(checkout: Path) -> None:
    travel = check_travel(checkout, [checkout / "pack" / "piece"], LIMITS)
    assert travel.tracked_bytes == 3000 + len("/pack/\nignored\n")
    assert travel.carried_bytes == {"pack/piece": 3000}
    assert travel.total_bytes == travel.tracked_bytes + 3000


def test_too_large_a_size_is_refused_with_the_largest_files(checkout: Path) -> None:
    (checkout / "pack" / "piece" / "large").write_bytes(bytes(3 << 19))
    with pytest.raises(ResourceLimit, match=r"got 1\.5 MiB, expected at most 1 MiB.*\(MiB\): pack/piece/large 1\.5, "):
        check_travel(checkout, [checkout / "pack" / "piece"], LIMITS)


@pytest.mark.parametrize("name", ["models/trained.safetensors", "e3d_deploy/demo/trained.safetensors"])
def test_a_trained_model_that_does_not_fit_is_left_out(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The model fits with 3,000 bytes of the pack, but not with 500,000 more."""
    (checkout / name).parent.mkdir(parents=True)
    (checkout / name).write_bytes(bytes(1_000_000))
    travel = check_travel(checkout, [checkout / "pack" / "piece"], LIMITS)
    assert travel.models_bytes == {name: 1_000_000}
    assert travel.total_bytes < 10_000
    assert travel.without(LIMITS) == []
    (checkout / "pack" / "piece" / "large").write_bytes(bytes(500_000))
    assert check_travel(checkout, [checkout / "pack" / "piece"], LIMITS).without(LIMITS) == [name]

    machine = replace(borrowed.read(), limits=LIMITS)
    monkeypatch.setattr("benchmarks.gpu.prepare.CARRIED", dict.fromkeys(CALLS, ("piece",)))
    monkeypatch.setattr("benchmarks.gpu.call.CARRIED", dict.fromkeys(CALLS, ("piece",)))
    lines = plan(checkout / "pack", machine, checkout)
    assert lines.count(f"    first move {name} out of the checkout, and move it back afterwards") == len(CALLS)


def test_this_checkout_leaves_room_for_the_pack() -> None:
    machine = borrowed.read()
    assert check_travel(Path(__file__).parents[2], [], machine.limits).tracked_bytes < 20 * MIB


@pytest.mark.parametrize(
    ("names", "size", "says"),
    [
        (("a", "b", "c", "d"), 1, "got 4 files, expected at most 3"),
        (("a",), 101, "write it in parts"),
        (("a/b/c/d",), 1, "would not be returned"),
        (("a b",), 1, "would not be returned"),
    ],
)
def test_results_that_would_not_be_returned_are_refused(
    tmp_path: Path, names: tuple[str, ...], size: int, says: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(ResourceLimit, match=says):
        check_results(tmp_path, LIMITS)
    assert check_results(tmp_path / "none", LIMITS) == {}


# Missing packages


def machine(**changes: object) -> Machine:
    """Return a machine whose only package is NumPy."""
    described = json.loads(borrowed.FILE.read_text())
    described |= {"installed": {"NumPy": "2.5.2"}, "carried": {}, "left_out": {"PyYAML": "for the test"}, **changes}
    return Machine(**described | {"limits": LIMITS})


def python(code: str, variables: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_packages_that_the_machine_lacks_cannot_be_imported(tmp_path: Path) -> None:
    confined = Confiner(machine=machine()).confined(tmp_path)
    (tmp_path / "ours.py").write_text("import numpy, json\ntry:\n import click\nexcept ImportError as e:\n print(e)\n")
    code = (
        "import ours, importlib.util, importlib.metadata as m\n"
        "print(importlib.util.find_spec('rich'))\n"
        "print(sorted(one.name for one in m.distributions() if one.name in ('numpy', 'click', 'rich')))\n"
        "import e3d_deploy"
    )
    done = python(code, dict(confined.variables), tmp_path)
    assert done.stdout.splitlines() == ["No module named 'click'", "None", "['numpy']"]
    assert "No module named 'e3d_deploy'" in done.stderr  # even with an editable installation
    assert confined.lacking() == {"click": "click", "rich": "rich"}


def test_only_imports_of_our_own_code_are_let_through_and_learnt(tmp_path: Path) -> None:
    """A package of the machine works without its missing imports there, so they are not carried."""
    confined = Confiner(machine=machine(installed={"numpy": None, "pytest": None})).confined(tmp_path, learn=True)
    code = (
        "import importlib.metadata as m, rich.markdown\n"
        "print(sorted(one.name for one in m.distributions() if one.name in ('numpy', 'pluggy', 'rich')))\n"
        "try:\n import yaml\nexcept ImportError:\n print('left out')\nimport pytest"
    )
    done = python(code, dict(confined.variables), tmp_path)
    assert done.stdout.splitlines() == ["['numpy', 'rich']", "left out"]
    assert "No module named 'pluggy'" in done.stderr or "No module named 'iniconfig'" in done.stderr
    lacking = set(confined.lacking())
    assert {"rich", "markdown-it-py", "pygments"} <= lacking
    assert not lacking & {"pyyaml", "pluggy", "iniconfig", "numpy"}


def test_dependencies_of_unknown_version_are_carried(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["numpy>=1.26", "click>=8.2", "PyYAML"]\n')
    described = machine(installed={"numpy": "2.5.2", "click": None, "rich": None})
    assert of_unknown_version(project, described) == {"click": "click"}


def test_the_described_machine_has_what_this_project_needs() -> None:
    described = borrowed.read()
    assert (described.python_tag, described.architecture) == ("3.12", 90)
    assert {"torch", "numpy", "pytest", "safetensors", "huggingface-hub"} <= set(described.installed)
    assert described.platforms[0] == "manylinux_2_28_x86_64"
    assert described.limits.travel_bytes == 60 * MIB


# With a network


@pytest.mark.slow
def test_onnxruntime_for_one_chip_is_small_enough(tmp_path: Path) -> None:
    described = borrowed.read()
    try:
        install(described.carried, tmp_path, described)
    except SystemExit as error:
        pytest.skip(f"no network: {error}")
    pruned = shrink_onnxruntime(tmp_path, described)
    assert pruned.kept_bytes < 12 * MIB < 150 * MIB < pruned.zeroed_bytes
    assert (tmp_path / PROVIDER).stat().st_size > 200 * MIB  # the length of the file is unchanged
    assert not list(tmp_path.glob("onnxruntime/capi/libonnxruntime.so*"))
    assert [path.name for path in tmp_path.glob("cuda/core/cu*")] == ["cu13"]
