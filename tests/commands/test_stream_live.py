"""`e3d stream` on the network: lost cameras, and peers that refuse or leave."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from e3d_deploy.commands import _stream_tables
from e3d_deploy.data.live import reconnect
from e3d_deploy.live import push
from tests.commands.test_stream import COUNT, QUICK, SIZE, frames_in, lines
from tests.data.live.conftest import _no_proxy, start
from tests.data.live.peers import Peer, mjpeg, picture, request, rtsp
from tests.data.test_data import gray_levels, write_video
from tests.tools import e3d

__all__ = ["_no_proxy", "start"]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", gray_levels(SIZE, [20 * step for step in range(COUNT)]))


def test_a_camera_that_is_lost_twice_keeps_all_its_pictures(
    exported: Path, film: Path, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real RTSP connection, reopened once, next to an undisturbed file."""
    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 0.0)
    sends = rtsp(10)

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        if number < 2:
            sends(peer, connection, number)

    url = f"rtsp://user:secret@127.0.0.1:{start(serve).port}/cam"
    options = ["--policy", "block", "--attempts", 1, "-o", tmp_path / "views", "--jsonl", tmp_path / "lines", "--json"]
    result = e3d("stream", exported / "tiny.e3d", url, film, *QUICK, *options, code=6)
    camera, whole = json.loads(result.stdout)["sources"]
    assert camera["source"] == url.replace("user:secret@", "")
    assert (camera["frames"], camera["reconnects"], camera["cuts"]) == (20, 1, 1)
    assert (whole["frames"], whole["error"]) == (COUNT, None)
    assert [frames_in(path) for path in sorted((tmp_path / "views").iterdir())] == [20, COUNT]
    seen = [one for one in lines((tmp_path / "lines").read_text()) if one["source"] == camera["source"]]
    assert [one["index"] for one in seen if one["cut"]] == [10]
    assert seen[10]["age"] == 1
    assert "secret" not in result.output


def test_a_camera_over_http_is_followed(exported: Path, start: Any) -> None:
    peer = start(mjpeg([picture(number) for number in range(COUNT)]))
    options = ["--attempts", 0, "--policy", "block", "--json"]
    url = f"http://127.0.0.1:{peer.port}/"
    found = json.loads(e3d("stream", exported / "tiny.e3d", url, *QUICK, *options, code=6).stdout)
    assert found["frames"] == COUNT


@contextmanager
def listener(most: int | None = None) -> Iterator[tuple[str, bytearray]]:
    """Yield the address of a TCP peer, and the bytes that it receives; it leaves after `most` bytes."""
    got = bytearray()

    def listen() -> None:
        connection, _ = server.accept()
        with connection:
            while (most is None or len(got) < most) and (more := connection.recv(65536)):
                got.extend(more)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}", got
        thread.join(60)


def test_a_peer_gets_what_the_video_shows(
    exported: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "CLOSE_S", 60.0)
    monkeypatch.setattr(push, "QUEUE", 100)
    with listener() as (url, got):
        options = ["--push", url, "-o", tmp_path / "a.mp4", "--json"]
        found = json.loads(e3d("stream", exported / "tiny.e3d", film, *QUICK, *options).stdout)
    assert (found["sources"][0]["pushed"], found["sources"][0]["not_pushed"]) == (COUNT, 0)
    with av.open(BytesIO(got)) as sent, av.open(str(tmp_path / "a.mp4")) as written:
        pairs = list(zip(sent.decode(video=0), written.decode(video=0), strict=True))
    assert len(pairs) == COUNT
    for one, other in pairs:
        assert np.abs(one.to_ndarray(format="gray").astype(int) - other.to_ndarray(format="gray")).mean() < 4


def test_a_peer_that_leaves_is_reported_and_stops_nothing(exported: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", gray_levels(SIZE, [2 * step for step in range(100)]), rate=50)
    with listener(most=1) as (url, _):
        options = ["--push", url, "-o", tmp_path / "a.mp4", "--realtime", "--json"]
        result = e3d("stream", exported / "tiny.e3d", film, *QUICK, *options, code=6)
    (source,) = json.loads(result.stdout)["sources"]
    assert source["frames"] == frames_in(tmp_path / "a.mp4") == 100
    assert source["not_pushed"] > 0
    assert source["pushed"] + source["not_pushed"] == 100
    said = result.stderr.splitlines()
    assert f"push to {url}: the peer was lost; streaming continues without it" in said
    assert said[-1].startswith(f"Error: push to {url}: the peer was lost (")


def test_a_peer_that_refuses_ends_it_before_any_work(exported: Path, film: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"rtsp://127.0.0.1:{free.getsockname()[1]}/a"
        options = ["--push", url, "-o", tmp_path / "a.mp4", "--json"]
        result = e3d("stream", exported / "tiny.e3d", film, *QUICK, *options, code=6)
    assert result.stdout == ""
    assert "the peer does not accept the video (Connection refused)" in result.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["film.mp4"]


def test_a_source_that_is_refused_ends_it_before_any_work(
    exported: Path, film: Path, tmp_path: Path, start: Any
) -> None:
    def refuse(_: Peer, connection: socket.socket, __: int) -> None:
        request(connection)

    options = ["-o", tmp_path / "views", "--jsonl", tmp_path / "lines"]
    url = f"http://127.0.0.1:{start(refuse).port}/"
    result = e3d("stream", exported / "tiny.e3d", film, url, *QUICK, *options, code=6)
    assert result.stdout == ""
    assert [one.name for one in tmp_path.iterdir()] == ["film.mp4"]


def test_the_live_table_ends_with_the_values_of_the_lines_and_the_verdict(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(_stream_tables, "is_animated", lambda _: True)
    film = write_video(tmp_path / "film.mp4", gray_levels(SIZE, [2 * step for step in range(60)]))
    options = ["--renewal", "none", "--jsonl", tmp_path / "lines"]
    said = without_terminal(e3d("stream", exported / "tiny.e3d", film, *QUICK, *options).stderr).splitlines()
    last = max(number for number, line in enumerate(said) if line.startswith(str(film)) and " ended " in line)
    row = dict(zip(_stream_tables.COLUMNS, re.sub(r" ms\b", "", said[last]).split(), strict=True))
    seen = lines((tmp_path / "lines").read_text())
    assert (row["frames"], row["dropped"], row["age"]) == ("60", "0", "60")
    mse, copy_mse = (np.mean([one[key][-1] for one in seen[2:]]) for key in ("errors", "copy_errors"))
    assert row["MSE/copying"] == f"{mse:.1f}/{copy_mse:.1f}"
    assert row["novelty"] == f"{seen[-1]['novelty'][-1]:.2f}"
    assert said[last + 1].startswith(f"{film}: 2 frames ahead, copying the last picture is better than the forecast")


def without_terminal(text: str) -> str:
    """Return the text that a terminal received, without colours, with a line break for each cursor movement."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\r", "\n", re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_terminal_shows_a_table_that_changes(
    width: int, exported: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow terminal shows the end of a long name and the most important columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(_stream_tables, "is_animated", lambda _: True)
    said = without_terminal(e3d("stream", exported / "tiny.e3d", film, *QUICK).stderr)
    least = _stream_tables.LEAST_IMPORTANT
    left_out = [set(least[:count]) for count in ([0] if width == 200 else range(1, len(least) + 1))]
    titles = [[column for column in _stream_tables.COLUMNS if column not in gone] for gone in left_out]
    rows = [after for before, after in pairwise(said.splitlines()) if before.split() in titles]
    assert rows
    for row in rows:
        name, status = row.split()[:2]
        assert name == str(film) if width == 200 else str(film).endswith(name.removeprefix("…"))
        assert status in ("running", "ended")
        assert len(row) <= width


def test_a_log_gets_a_line_per_interval(exported: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e3d_deploy.commands._output.INTERVAL_S", 0.0)
    said = e3d("stream", exported / "tiny.e3d", film, *QUICK).stderr.splitlines()
    assert f"streaming {film}" in said
    assert any(line.startswith(f"streaming {film}: frame ") and line.endswith(" 0 dropped") for line in said)


def test_a_name_of_wide_characters_is_cut_by_terminal_cells() -> None:
    assert _stream_tables._ending("前カメラ.mp4", 12) == "前カメラ.mp4"
    assert _stream_tables._ending("前カメラ.mp4", 11) == "…カメラ.mp4"
