"""Many cameras share one model, one process and one clean end."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_broken_source import broken
from tests.data.live.conftest import _no_proxy, start
from tests.data.live.peers import mjpeg, picture
from tests.data.test_data import gray_levels, write_video
from tests.examples.conftest import EXAMPLES

__all__ = ["_no_proxy", "start"]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", gray_levels((16, 24), [10 * step for step in range(20)]))


def start_cameras(bundle: Path, *sources: object) -> "subprocess.Popen[str]":
    command = [sys.executable, EXAMPLES / "many_cameras.py", bundle, *map(str, sources)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_films_as_cameras_are_followed_to_their_ends_in_real_time(exported: Path, film: Path, tmp_path: Path) -> None:
    cut = broken(tmp_path / "cut.mkv")
    with start_cameras(exported / "tiny.e3d", film, cut, film) as cameras:
        out, err = cameras.communicate(timeout=120)
    assert cameras.returncode == 0, err
    one, lost, other = map(json.loads, out.splitlines()[-3:])
    for report in (one, other):
        assert (report["camera"], report["state"]) == (str(film), "ended")
        assert report["frames"] + report["dropped"]["full"] + report["queue"] == 20
        assert report["frames"] > 0
    assert "broke off after" in lost["state"]
    assert lost["frames"] > 0


def test_sigterm_ends_cameras_that_never_end(exported: Path, film: Path, start: Any) -> None:
    peer = start(mjpeg([picture(number) for number in range(30)], then_silent=True))
    with start_cameras(exported / "tiny.e3d", f"http://127.0.0.1:{peer.port}/", film) as cameras:
        assert cameras.stdout is not None
        line = cameras.stdout.readline()
        while line and "motion" not in line:
            line = cameras.stdout.readline()
        cameras.send_signal(signal.SIGTERM)
        out, err = cameras.communicate(timeout=120)
    assert cameras.returncode == 0, err
    assert err.splitlines()[-1] == "stopping"
    reports = [json.loads(text) for text in out.splitlines()[-2:]]
    assert [report["camera"] for report in reports] == [f"http://127.0.0.1:{peer.port}/", str(film)]
    assert [report["state"] for report in reports] == ["ended", "ended"]
    assert reports[0]["frames"] > 0


def test_a_camera_that_cannot_be_opened_is_an_error_before_any_work(exported: Path, film: Path) -> None:
    with start_cameras(exported / "tiny.e3d", film, "missing.mp4") as cameras:
        out, err = cameras.communicate(timeout=120)
    assert (cameras.returncode, out) == (1, "")
    assert "Error: missing.mp4: no such file or folder" in err
