"""The edge app flags the pictures of an event, and leaves complete results wherever its source ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.commands.test_broken_source import broken
from tests.data.live.conftest import _no_proxy, start
from tests.data.live.peers import Peer, mjpeg, picture, rtsp, wait_until
from tests.examples.conftest import EXAMPLES
from tests.packaging.environments import edge_python, run

__all__ = ["_no_proxy", "edge_python", "start"]

APP = EXAMPLES / "edge_app" / "edge_app.py"
EVENT = range(100, 115)
"""Pictures of the film in which a bright box crosses the square."""


def film_with_event(path: Path) -> Path:
    """Write the film that no model was trained on, with a bright box that moves through the pictures of EVENT."""
    source = Path(__file__).parents[2] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"
    with av.open(str(source)) as film, av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        for number, frame in enumerate(film.decode(video=0)):
            pixels = frame.to_ndarray(format="rgb24")
            if number in EVENT:
                left = 8 + 10 * (number - EVENT.start)
                pixels[70:110, left : left + 24] = 235
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


def lines_in(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of the JSON lines; each line must be complete."""
    text = (folder / "pictures.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def check_plot(folder: Path) -> None:
    with Image.open(folder / "novelty.png") as plot:
        plot.load()
        assert plot.format == "PNG"
        assert len(plot.convert("RGB").getcolors(1 << 20)) > 20


def start_app(bundle: Path, source: object, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, APP, bundle, str(source), "-o", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_an_event_is_flagged_on_a_device_without_pytorch(edge_python: Path, film_bundle: Path, tmp_path: Path) -> None:
    film = film_with_event(tmp_path / "film.mp4")
    done = run(edge_python, APP, film_bundle, film, "-o", "watch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = lines_in(tmp_path / "watch")
    assert [one["index"] for one in seen] == list(range(150))
    flagged = [one["index"] for one in seen if one["event"] is not None]
    assert flagged[0] == EVENT.start
    assert set(flagged) <= set(EVENT)
    assert len(flagged) >= 10
    assert {one["event"] for one in seen} == {None, 1}
    assert "event 1: " in done.stdout
    assert f" {EVENT.start / 10:.1f} s, novelty" in done.stdout
    check_plot(tmp_path / "watch")
    assert run(edge_python, "-c", "import torch", cwd=tmp_path).returncode == 1


def test_a_truncated_film_leaves_its_lines_and_the_plot(exported: Path, tmp_path: Path) -> None:
    with start_app(exported / "tiny.e3d", broken(tmp_path / "cut.mkv"), tmp_path / "watch") as app:
        out, err = app.communicate(timeout=120)
    assert app.returncode == 1
    seen = lines_in(tmp_path / "watch")
    assert len(seen) > 0
    assert f"broke off after {len(seen)} " in err
    assert f"plot: {tmp_path / 'watch' / 'novelty.png'}" in out
    check_plot(tmp_path / "watch")


def test_a_camera_that_breaks_off_is_watched_again_until_sigterm(exported: Path, tmp_path: Path, start: Any) -> None:
    pictures = [picture(number) for number in range(30)]
    brief, lasting = mjpeg(pictures), mjpeg(pictures, then_silent=True)

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        (brief if number == 0 else lasting)(peer, connection, number)

    url = f"http://me:secret@127.0.0.1:{start(serve).port}/"
    lines = tmp_path / "watch" / "pictures.jsonl"
    with start_app(exported / "tiny.e3d", url, tmp_path / "watch") as app:
        wait_until(lambda: app.poll() is not None or is_watched_again(lines))
        app.send_signal(signal.SIGTERM)
        out, err = app.communicate(timeout=120)
    assert app.returncode == 0, err
    assert "reconnected; the state is reset" in out
    assert "secret" not in out + err
    assert lines_in(tmp_path / "watch")[-1]["index"] == 59
    check_plot(tmp_path / "watch")


def is_watched_again(lines: Path) -> bool:
    """Return True once the last picture of the second connection was written."""
    return lines.exists() and '"index": 59,' in lines.read_text()


def test_an_output_that_is_a_file_is_an_error(exported: Path, tmp_path: Path) -> None:
    film = film_with_event(tmp_path / "film.mp4")
    with start_app(exported / "tiny.e3d", film, film) as app:
        _, err = app.communicate(timeout=120)
    assert app.returncode == 1
    assert err.splitlines()[-1].startswith("Error: ")
    assert str(film) in err.splitlines()[-1]


def test_a_plot_that_cannot_be_written_is_an_error_and_the_lines_stay(exported: Path, tmp_path: Path) -> None:
    film = film_with_event(tmp_path / "film.mp4")
    (tmp_path / "watch" / "novelty.png").mkdir(parents=True)
    with start_app(exported / "tiny.e3d", film, tmp_path / "watch") as app:
        _, err = app.communicate(timeout=120)
    assert app.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert len(lines_in(tmp_path / "watch")) == 150


@pytest.mark.slow
def test_a_camera_that_is_lost_leaves_its_lines_and_the_plot(exported: Path, tmp_path: Path, start: Any) -> None:
    sends = rtsp(30)

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        if number == 0:
            sends(peer, connection, number)

    with start_app(exported / "tiny.e3d", f"rtsp://127.0.0.1:{start(serve).port}/a", tmp_path / "watch") as app:
        out, err = app.communicate(timeout=120)
    assert app.returncode == 1
    assert "attempt 5 of 5" in out
    assert "after 5 attempts to reconnect" in err
    assert len(lines_in(tmp_path / "watch")) > 0
    check_plot(tmp_path / "watch")
