"""Writes to files, links, pipes, devices and descriptors."""

import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.errors import ConfigError
from e3d_deploy.files import check_writable, new_file, new_folder, workspace, write_file

BEFORE, CONTENT = b"before", b"content" * 20_000  # more than the buffer of a pipe


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    folder, link = tmp_path / "elsewhere", tmp_path / "link.npz"
    folder.mkdir()
    link.symlink_to("elsewhere/target.npz")
    for _ in range(2):  # at first, the link leads to a file that does not exist
        write_file(link, CONTENT)
        assert link.is_symlink()
        assert (folder / "target.npz").read_bytes() == CONTENT
        assert [path.name for path in folder.iterdir()] == ["target.npz"]
    with pytest.raises(ZeroDivisionError), new_file(link) as partial:  # noqa: PT012 (both are the test)
        assert partial.name == "link.npz"  # writers choose the file format by this suffix
        partial.write_bytes(BEFORE)
        raise ZeroDivisionError
    assert (folder / "target.npz").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link.npz"]


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    for mode in (0o600, 0o664, 0o444, 0o755):
        path = tmp_path / f"{mode:o}"
        path.write_bytes(BEFORE)
        path.chmod(mode)
        write_file(path, CONTENT)
        assert (path.read_bytes(), mode_of(path)) == (CONTENT, mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BEFORE)
    os.chown(path, 12345, 12346)
    write_file(path, CONTENT)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_a_file_is_written_even_if_its_owner_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    (tmp_path / "file").write_bytes(BEFORE)
    write_file(tmp_path / "file", CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_named_pipe_gets_the_bytes_and_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.npz", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        found: list[bytes] = []
        reader = threading.Thread(target=lambda found=found: found.append(pipe.read_bytes()))
        reader.start()
        write_file(path, CONTENT)
        reader.join(60)
        assert found == [CONTENT]
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "pipe.npz"]


def test_a_device_gets_the_bytes_and_stays(tmp_path: Path) -> None:
    """The device is a terminal: nothing can be created in its folder, so a bug cannot replace the device."""
    terminal, device = os.openpty()
    path, link = Path(os.ttyname(device)), tmp_path / "link"
    link.symlink_to(path)
    for written in (path, link):
        write_file(written, b"content")
        assert os.read(terminal, 100) == b"content"
        assert stat.S_ISCHR(path.stat().st_mode)
    os.close(terminal)
    os.close(device)


@pytest.mark.usefixtures("devices_stay")
def test_the_null_device_accepts_everything(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), link):
        write_file(path, CONTENT)
        assert stat.S_ISCHR(path.stat().st_mode)


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link.npz"])
def test_a_descriptor_gets_the_bytes_at_its_position(tmp_path: Path, name: str, to_file: bool) -> None:
    code = f"""
import os, tempfile
from pathlib import Path
from e3d_deploy.files import write_file
make = tempfile.mkdtemp
def make_elsewhere(*args, **options):
    assert str(options.get("dir")) != "/dev", "a device would be replaced by a file"
    return make(*args, **options)
tempfile.mkdtemp = make_elsewhere
os.write(1, b"first ")
write_file(Path({name!r}), b"content")
os.write(1, b" last")
"""
    (tmp_path / "link.npz").symlink_to("/dev/stdout")
    command = [sys.executable, "-c", code]
    if to_file:
        with (tmp_path / "out").open("wb") as out:
            subprocess.run(command, check=True, stdout=out, cwd=tmp_path)
        found = (tmp_path / "out").read_bytes()
    else:
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tmp_path).stdout
    assert found == b"first content last"


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/tmp/.file.abc.partial/file")

    return fail


@pytest.mark.usefixtures("devices_stay")
def test_an_error_names_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("absent/target")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    expected = {
        tmp_path: IsADirectoryError,
        tmp_path / "absent/file": FileNotFoundError,
        tmp_path / "file/below": NotADirectoryError,
        tmp_path / "link": FileNotFoundError,
        tmp_path / "loop": OSError,
        Path("/dev/full"): OSError,
        Path("/dev/fd/987"): OSError,
    }
    for path, kind in expected.items():
        with pytest.raises(kind) as error:
            write_file(path, CONTENT)
        assert error.value.filename == str(path)
        assert error.value.filename2 is None
        assert ".partial" not in str(error.value)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    steps = [(tempfile, "mkdtemp", errno.EACCES), (Path, "write_bytes", errno.ENOSPC), (Path, "replace", errno.EBUSY)]
    for owner, name, number in steps:
        with monkeypatch.context() as context:
            context.setattr(owner, name, failing(number))
            with pytest.raises(OSError, match=r"file'$") as error:
                write_file(tmp_path / "file", CONTENT)
            assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop"]
    assert (tmp_path / "file").read_bytes() == b""


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("absent/target")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    target = tmp_path / "absent/target"
    expected = {
        target: f"{target}: its folder does not exist; create it first",
        tmp_path / "link": f"link: leads to {target}; its folder does not exist",
        tmp_path / "file/below": f"below: {tmp_path / 'file'} is not a folder; choose another place",
        tmp_path / "folder": "folder: is a folder; choose another name",
        tmp_path / "mounted": "mounted: is a mount point, which cannot be replaced",
    }
    (tmp_path / "mounted").touch()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted")
    for path, text in expected.items():
        with pytest.raises(ConfigError, match=re.escape(text)):
            check_writable(path)
    for path in (tmp_path / "file", tmp_path / "new", Path("/dev/null"), Path("/dev/stdout")):
        check_writable(path)
    check_writable(tmp_path / "folder", folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link", "mounted"]
    monkeypatch.setattr(tempfile, "mkdtemp", failing(errno.EROFS))
    with pytest.raises(OSError, match=r"Read-only file system: '.*/file'$"):
        check_writable(tmp_path / "file")


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, new_file(tmp_path / "file") as partial:
        partial.write_bytes((tmp_path / "source").read_bytes())
    assert error.value.filename == str(tmp_path / "source")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_the_error_for_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError) as error:
        write_file(tmp_path / "file", CONTENT)
    assert error.value.filename == str(tmp_path / "file")


def test_names_of_the_maximum_length_work(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_file(tmp_path / name, CONTENT)
        assert (tmp_path / name).read_bytes() == CONTENT


def test_a_new_folder_is_made_where_a_link_leads(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    with new_folder(link) as folder:
        (folder / "file").touch()
    assert link.is_symlink()
    assert [path.name for path in target.iterdir()] == ["file"]


def test_an_empty_folder_that_is_filled_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("folder")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert mode_of(tmp_path / "folder") == 0o700
    assert (tmp_path / "folder/file").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no folder")
def test_an_empty_folder_stays_where_filling_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_a_workspace_that_cannot_be_made_names_its_output_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, workspace(tmp_path / "absent/target"):
        pass
    assert error.value.filename == str(tmp_path / "absent/target")


def test_a_pipe_is_written_without_a_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
