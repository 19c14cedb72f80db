"""Invalid paths and numbers are refused before any work, with an error that names them."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy import checkpoint
from e3d_deploy.commands._failures import explain, system_error
from e3d_deploy.errors import BundleError, BundleMissing, CheckpointError, CheckpointMissing
from e3d_deploy.files import scratch_folder
from e3d_deploy.measure.profile import profile
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.registry import MAX_THREADS
from tests.tools import e3d

PLACES = {
    "predict": "{path} {video} -o {new}",
    "predict INPUT": "{bundle} {path} -o {new}",
    "stream": "{path} {video}",
    "stream SOURCE": "{bundle} {path}",
    "export": "{path} -o {new}",
    "import": "{path} -o {new}",
    "verify": "{path}",
    "verify --clip": "{bundle} --clip {path}",
    "evaluate": "{path} --data {video}",
    "evaluate --data": "{bundle} --data {path}",
    "evaluate --lpips": "{bundle} --data {video} --lpips {path}",
    "benchmark": "{path}",
    "benchmark --baseline": "{bundle} --baseline {path}",
    "profile": "{path}",
    "inspect": "{path}",
    "diff": "{path} {bundle}",
    "diff B": "{bundle} {path}",
    "pack": "{path} -o {new}",
    "unpack": "{path} -o {new}",
    "join": "{path} -o {new}",
    "doctor": "--bundle {path}",
    "data inspect": "{path}",
    "cache ls": "--cache {path}",
    "cache rm": "--all --cache {path}",
    "cache verify": "--cache {path}",
    "build": "{path} --target tensorrt",
    "refit": "{path} --from {bundle} --target tensorrt",
    "refit --from": "{bundle} --from {path} --target tensorrt",
}
"""Arguments of every command that reads a path, by the command and the option of the path."""
BY_TYPE = [place for place in PLACES if "cache" not in place and "data" not in place]
"""Commands and options whose paths are checked before the command runs."""


def last_line(place: str, path: str, bundle: Path, folder: Path, *, code: int = 2) -> str:
    """Run a command with a path for one of its options, and return the error."""
    names = {"path": path, "bundle": str(bundle), "video": str(folder / "video.mp4"), "new": str(folder / "new")}
    command = [word for word in place.split() if word.islower() and not word.startswith("-")]
    arguments = [part.format(**names) for part in PLACES[place].split()]
    result = e3d(*command, *arguments, code=code)
    line = result.stderr.splitlines()[-1]
    assert "unexpected" not in line
    assert not os.path.exists(names["new"])
    return line


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_path_exits_with_2(place: str, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "absent.npz"
    assert str(path) in last_line(place, str(path), exported / "tiny.e3d", tmp_path)


@pytest.mark.parametrize("place", BY_TYPE)
def test_a_path_that_cannot_be_looked_up_exits_with_2(place: str, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    bundle = exported / "tiny.e3d"
    assert "without a loop of symbolic links" in last_line(place, str(tmp_path / "loop"), bundle, tmp_path)
    assert "give a shorter name" in last_line(place, str(tmp_path / ("n" * 300)), bundle, tmp_path)


def test_an_empty_path_is_refused() -> None:
    assert "'BUNDLE_OR_MODEL': got an empty text, expected a path." in e3d("inspect", "", code=2).stderr
    assert "'BUNDLE_OR_MODEL': got an empty text, expected a path." in e3d("evaluate", "", code=2).stderr


def test_an_unreadable_file_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    line = e3d("inspect", path, code=2).stderr.splitlines()[-1]
    assert line == (
        f"Error: {path}: Permission denied; change its permissions or those of its folders, or give another path"
    )


def test_an_error_that_has_a_remedy_gets_no_second_one(
    tmp_path: Path, homeless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = e3d("cache", "ls", code=2).stderr.splitlines()[-1]
    assert line.endswith(": the user has no home folder; set XDG_CACHE_HOME to a folder, or HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="set TMPDIR") as error, scratch_folder():
        raise OSError(errno.ENOSPC, "No space left on device")
    line = f"{tmp_path / 'e3d_deploy'}: No space left on device; set TMPDIR to a folder with room"
    assert system_error(error.value) == (line, 7)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 2),
        (errno.EISDIR, 2),
        (errno.ENOTDIR, 2),
        (errno.EACCES, 2),
        (errno.EPERM, 2),
        (errno.EROFS, 2),
        (errno.ENOSPC, 7),
        (errno.EDQUOT, 7),
        (errno.EFBIG, 7),
        (errno.EMFILE, 7),
        (errno.EIO, 1),
        (errno.ENODEV, 1),
    ],
)
def test_errors_of_the_system_have_a_remedy_and_no_number(number: int, code: int) -> None:
    line, found = explain(OSError(number, os.strerror(number), "clips/one.mp4"))
    assert found == code
    assert line.startswith(f"clips/one.mp4: {os.strerror(number)}; ")
    assert "Errno" not in line
    assert explain(OSError(number, os.strerror(number), b"one.mp4"))[0].startswith("one.mp4: ")
    assert explain(OSError(number, os.strerror(number)))[0].startswith("a file or device: ")


@pytest.mark.parametrize("command", ["predict", "verify", "evaluate"])
def test_an_archive_instead_of_a_bundle_must_be_unpacked(bundle_path: Path, tmp_path: Path, command: str) -> None:
    archive = tmp_path / "tiny.e3d.zip"
    e3d("pack", bundle_path, "-o", archive)
    more = ("clip.npy", "-o", tmp_path / "o.npz") if command == "predict" else ()
    error = e3d(command, archive, *more, code=5).stderr.splitlines()[-1]
    assert f"unpack it first: `e3d unpack {archive} -o NAME.e3d`" in error


def test_the_python_api_tells_missing_from_damaged(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no such bundle"):
        Bundle.open(tmp_path / "absent.e3d")
    with pytest.raises(BundleError, match="is a file, and a bundle is a folder") as caught:
        Bundle.open(exported / "tiny.safetensors")
    assert caught.value.exit_code == 5
    with pytest.raises(CheckpointMissing, match="no such file"):
        checkpoint.load(tmp_path / "absent.safetensors")
    for read in (checkpoint.load, checkpoint.read_card):
        with pytest.raises(CheckpointError, match="is a folder; ") as folder:
            read(exported / "tiny.e3d")
        assert folder.value.exit_code == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes(range(256)), "binary, not text"),
        (b"", "not JSON: Expecting value"),
        (b"loss 0.5", "not JSON: Expecting value"),
        (b"{}", "without 'schema'"),
        (b"[1, 2]", "JSON of a different form"),
        (json.dumps({"schema": 1}).encode(), "without 'environment'"),
        (b"[" * 100_000, "JSON of a different form"),
    ],
)
def test_a_file_that_is_not_a_baseline_is_refused_in_one_line(
    content: bytes, said: str, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    line = e3d("benchmark", exported / "tiny.e3d", "--baseline", path, code=5).stderr.splitlines()[-1]
    assert line.startswith(f"Error: {path}: not a result of `e3d benchmark --json` ({said}")
    assert line.endswith("make it again")
    assert line.isprintable()


def test_a_folder_as_a_baseline_is_refused(exported: Path) -> None:
    bundle = exported / "tiny.e3d"
    assert "is a folder; give a file" in e3d("benchmark", bundle, "--baseline", bundle, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ("predict {bundle} {bundle} -o new.npz --threads 1000", f"threads: got more than {MAX_THREADS}"),
        ("verify {bundle} --threads 1000", f"threads: got more than {MAX_THREADS}"),
        ("benchmark {bundle} --threads 100000", f"threads: got more than {MAX_THREADS}"),
        ("profile {bundle} --threads 100000", f"threads: got more than {MAX_THREADS}"),
        ("doctor --threads 1000", f"threads: got more than {MAX_THREADS}"),
        ("evaluate {bundle} --horizon 100000", "got 100000, expected a whole number from 1 to 10,000"),
        ("evaluate {bundle} --context 0", "got 0, expected a whole number from 1 to 10,000"),
        ("evaluate {bundle} --most 10000000", "got 10000000, expected a whole number from 1 to 1,000,000"),
        ("evaluate {bundle} --samples 100000", "got 100000, expected a whole number from 0 to 10,000"),
        ("evaluate {bundle} --streaming --ages 4,1000000", "got '4,1000000', expected numbers up to 10,000"),
        ("verify {bundle} --steps 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("profile {bundle} --steps 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("benchmark {bundle} --repeats 1000000", "got 1000000, expected a whole number from 5 to 1,000"),
        ("benchmark {bundle} --seconds 1000000", "1000000.0 is not in the range 0<x<=3600"),
        ("benchmark {bundle} --streams 1,1000000", "got '1,1000000', expected numbers up to 1,024"),
        ("export {bundle} -o new.e3d --context 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("export {bundle} -o new.e3d --horizon 0", "got 0, expected a whole number from 1 to 10,000"),
        ("stream {bundle} {bundle} --horizon 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("import {bundle} -o new --context 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("import {bundle} -o new --horizon 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("import {bundle} -o new --history-length 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("import {bundle} -o new --patch-size 1000000", "got 1000000, expected a whole number from 1 to 1,024"),
        ("data inspect {bundle} --length 1000000", "got 1000000, expected a whole number from 1 to 10,000"),
        ("data inspect {bundle} --channels 1000000", "got 1000000, expected a whole number from 1 to 1,024"),
    ],
)
def test_too_large_numbers_are_refused_before_the_work(arguments: str, limit: str, exported: Path) -> None:
    result = e3d(*(part.format(bundle=exported / "tiny.e3d") for part in arguments.split()), code=2)
    assert limit in result.stderr


def test_profile_refuses_too_many_threads_in_python_too(exported: Path) -> None:
    with pytest.raises(ValueError, match="threads: got more than"):
        profile(Bundle.open(exported / "tiny.e3d"), "onnxruntime", threads=100_000)


OUTPUTS = {
    "predict": "predict absent.e3d absent.npy -o {output}.gif",
    "stream": "stream absent.e3d absent.mp4 -o {output}.mp4",
    "evaluate": "evaluate absent.e3d --data absent.npy -o {output}",
    "import": "import absent.pth -o {output}.safetensors",
    "join": "join absent -o {output}.safetensors",
    "verify": "verify absent.e3d --picture {output}.png",
    "benchmark": "benchmark absent.e3d --picture {output}.png",
    "export": "export {model} --precision int8 --calibration absent.npy -o {output}.e3d",
}
"""Commands with an output path; with a valid one they would fail when they read their input."""


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_path_that_is_not_writable_is_refused_before_the_work(
    command: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readonly(*, prefix: str, suffix: str, **_: Any) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / f"{prefix}{suffix}"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", readonly)
    words = OUTPUTS[command].format(output=tmp_path / "new", model=exported / "tiny.safetensors")
    line = e3d(*words.split(), code=2).stderr.splitlines()[-1]
    assert line.startswith(f"Error: {tmp_path / 'new'}")
    assert line.endswith("Read-only file system; give a path on a writable disk")
