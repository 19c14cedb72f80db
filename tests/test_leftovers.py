"""Removal of leftover workspaces, which must not happen before their process has certainly ended."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e3d_deploy import files
from e3d_deploy.files import ABANDONED_S, locked, new_file, remove_left, scratch_folder, workspace, write_file

KILLED = """
import os, signal, sys
from pathlib import Path
from e3d_deploy.files import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

FORKED = """
import os, sys
from pathlib import Path
from e3d_deploy.files import locked
stay, begun = os.pipe(), os.pipe()
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        os.write(begun[1], b"1")
        os.close(stay[1])
        os.read(stay[0], 1)
        os._exit(0)
    os.read(begun[0], 1)
with locked(Path(sys.argv[1]), None):
    pass
os.close(stay[1])
os.wait()
"""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """Return the workspace that a killed run left next to the file `target`."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "target")], check=False)
    (folder,) = tmp_path.iterdir()
    return folder


def age(folder: Path) -> None:
    long_ago = time.time() - ABANDONED_S - 60
    for path in (*folder.iterdir(), folder):
        os.utime(path, (long_ago, long_ago))


def test_the_next_run_removes_leftovers_of_a_killed_run(left: Path) -> None:
    write_file(left.parent / "other", b"")
    assert left.exists()
    write_file(left.parent / "target", b"")
    assert not left.exists()


def test_the_workspace_of_a_running_process_is_kept_at_any_age(tmp_path: Path) -> None:
    with workspace(tmp_path / "target") as folder:
        age(folder)
        write_file(tmp_path / "target", b"")
        assert folder.exists()


def test_only_the_age_decides_for_workspaces_of_a_different_system(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_system", lambda: "another.")
    write_file(left.parent / "target", b"")
    assert left.exists()
    age(left)
    write_file(left.parent / "target", b"")
    assert not left.exists()


@pytest.mark.parametrize("keeps", ["pretends", "refuses"])
def test_without_locks_only_the_age_decides(left: Path, monkeypatch: pytest.MonkeyPatch, keeps: str) -> None:
    def flock(*_: object) -> None:
        if keeps == "refuses":
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with workspace(left.parent / "target") as folder:
        write_file(left.parent / "target", b"")
        assert folder.exists()
    assert left.exists()
    age(left)
    write_file(left.parent / "target", b"")
    assert not left.exists()


def test_a_folder_moved_aside_by_a_killed_swap_stays_if_it_is_the_only_copy(left: Path) -> None:
    retired, target = left.with_suffix(".old"), left.parent / "target"
    left.rename(retired)
    write_file(target, b"")
    assert retired.exists()
    target.unlink()
    target.mkdir()
    with workspace(target):
        assert not retired.exists()


def test_a_locked_file_with_content_stays(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"film")
    for name in ("film", "lock"):
        with locked(tmp_path / name):
            assert (tmp_path / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["film"]


def test_a_child_of_a_fork_does_not_hold_the_locks_of_its_parent(tmp_path: Path) -> None:
    """Workers of a data loader may run for seconds after their run was killed, and would hold its locks."""
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], check=True, timeout=60)


def test_a_pattern_of_names_finds_leftovers_and_not_files(left: Path) -> None:
    (left.parent / ".target.film.partial").write_bytes(b"film")
    remove_left(left.parent, "other*")
    assert left.exists()
    remove_left(left.parent, "tar*")
    assert [path.name for path in left.parent.iterdir()] == [".target.film.partial"]


def test_a_link_that_looks_like_a_leftover_is_not_followed(tmp_path: Path, left: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    link = left.with_name(left.name.replace(".partial", "x.partial"))
    link.symlink_to("precious")
    write_file(tmp_path / "target", b"")
    assert (tmp_path / "precious" / "file").exists()


def test_temporary_files_of_killed_runs_are_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "e3d_deploy")], check=False)
    with scratch_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(OSError, match="set TMPDIR") as error, scratch_folder():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "e3d_deploy")
    # The error gives no advice, because another TMPDIR would not help.
    with pytest.raises(OSError, match=r"^.Errno 27. File too large: ") as error, scratch_folder():
        raise OSError(errno.EFBIG, "File too large")


def test_an_error_of_a_source_below_a_folder_named_partial_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    with pytest.raises(FileNotFoundError) as error, new_file(tmp_path / "file"):
        (tmp_path / "a.partial" / "source").read_bytes()
    assert error.value.filename == str(tmp_path / "a.partial" / "source")
