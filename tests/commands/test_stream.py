"""`e3d stream`: sources, outputs and endings."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy.commands import _process, _sinks
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.live.feed import Feed
from e3d_deploy.live import sinks, workers
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.novelty import MIN_ERRORS
from e3d_deploy.live.worker import SourceWorker
from tests.commands.test_broken_source import broken
from tests.data.test_data import gray_levels, write_video
from tests.tools import e3d

COUNT = 12
SIZE = (16, 24)
KEYS = "source index time_s latency_ms age cut errors copy_errors novelty dropped"
QUICK = ("--backend", "onnxruntime", "--horizon", 2, "--threads", 1)


@pytest.fixture
def bundle(exported: Path) -> Path:
    return exported / "tiny.e3d"


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    """Write two films with the same name in two folders; one film is longer."""
    paths = [tmp_path / folder / "film.mp4" for folder in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        write_video(path, gray_levels(SIZE, [20 * step for step in range(COUNT - 2 * number)]))
    return paths


def lines(text: str | bytes) -> list[dict[str, Any]]:
    """Return the objects of JSON lines; refuse numbers that are not finite."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def frames_in(path: Path) -> int:
    count: int = read_clips(path, Form(image_size=(16, 48), channels=1)).frames.shape[1]
    return count


def test_several_sources_have_videos_lines_and_a_summary_each(bundle: Path, films: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "beside"
    options = ["-o", output, "--jsonl", tmp_path / "lines.jsonl", "--json"]
    found = json.loads(e3d("stream", bundle, *films, *QUICK, *options).stdout)
    names, counts = [str(film) for film in films], [COUNT, COUNT - 2]
    assert [one["source"] for one in found["sources"]] == names
    assert [one["frames"] for one in found["sources"]] == counts
    assert found["frames"] == sum(counts)
    assert [one["output"] for one in found["sources"]] == [str(output / f"{number}-film.mp4") for number in (1, 2)]
    assert [frames_in(Path(one["output"])) for one in found["sources"]] == counts
    seen = lines((tmp_path / "lines.jsonl").read_text())
    assert {name: sum(one["source"] == name for one in seen) for name in names} == dict(zip(names, counts, strict=True))


def test_a_source_that_is_given_twice_has_two_names(bundle: Path, films: list[Path]) -> None:
    found = json.loads(e3d("stream", bundle, films[0], films[0], *QUICK, "--json").stdout)
    assert [one["source"] for one in found["sources"]] == [str(films[0]), f"{films[0]} (2)"]


def test_lines_on_stdout_describe_each_picture(bundle: Path, films: list[Path]) -> None:
    result = e3d("stream", bundle, films[0], *QUICK, "--jsonl", "-")
    seen = lines(result.stdout)
    assert "model p50" in result.stderr  # the table goes to stderr, because stdout is in use
    assert [one["index"] for one in seen] == list(range(COUNT))
    assert all(" ".join(one) == KEYS for one in seen)
    assert seen[0]["errors"] == seen[0]["copy_errors"] == seen[0]["novelty"] == [None, None]
    assert seen[1]["errors"][0] > 0
    assert seen[1]["errors"][1] is None
    assert all(math.isfinite(error) for one in seen[2:] for error in (*one["errors"], *one["copy_errors"]))
    assert [one["age"] for one in seen[:3]] == [1, 2, 3]
    assert seen[1]["time_s"] > seen[0]["time_s"]


def test_novelty_becomes_a_number_once_enough_errors_are_known(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    film = write_video(tmp_path / "film.mkv", rng.integers(0, 256, (40, *SIZE), np.uint8))
    seen = lines(e3d("stream", bundle, film, *QUICK, "--renewal", "none", "--jsonl", "-").stdout)
    assert seen[MIN_ERRORS]["novelty"] == [None, None]
    assert all(0 < novelty < 10 for novelty in seen[-1]["novelty"])


def test_a_cut_resets_the_state_with_reset_on(bundle: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", gray_levels(SIZE, [20] * 8 + [220] * 8))
    for options, cuts in (([], []), (["--reset-on", "cut"], [8])):
        seen = lines(e3d("stream", bundle, film, *QUICK, "--renewal", "none", *options, "--jsonl", "-").stdout)
        assert [one["index"] for one in seen if one["cut"]] == cuts
        assert seen[8]["age"] == (1 if cuts else 9)


def test_pictures_beyond_the_queue_are_dropped_with_drop_oldest(
    bundle: Path, films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network waits with the first picture until the whole film was read."""
    follow, sources = Follower.follow, list[Feed]()
    opened = Feed.__init__

    def noted(self: Feed, *arguments: Any, **options: Any) -> None:
        opened(self, *arguments, **options)
        sources.append(self)

    def late(self: Follower, picture: Any, **options: Any) -> Any:
        sources[0]._thread.join(60)
        return follow(self, picture, **options)

    monkeypatch.setattr(Feed, "__init__", noted)
    monkeypatch.setattr(Follower, "follow", late)
    options = ["--policy", "drop-oldest", "--queue", 3, "--jsonl", "-"]
    seen = lines(e3d("stream", bundle, films[0], *QUICK, *options).stdout)
    indices = [one["index"] for one in seen]
    assert indices[-3:] == [COUNT - 3, COUNT - 2, COUNT - 1]
    assert len(seen) <= 4
    assert seen[-1]["dropped"] == COUNT - len(seen)


def test_the_page_describes_the_keys_of_a_line() -> None:
    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    described = [
        line.split("`")[1] for line in page.partition("## JSON lines")[2].splitlines() if line.startswith("| `")
    ]
    assert " ".join(described[: len(KEYS.split())]) == KEYS


def test_raw_output_is_the_last_frame_of_each_forecast(bundle: Path, films: list[Path], tmp_path: Path) -> None:
    result = e3d("stream", bundle, films[0], *QUICK, "--raw-output", "-", "-o", tmp_path / "a.npz")
    raw = np.frombuffer(result.stdout_bytes, np.uint8).reshape(COUNT, *SIZE)
    beside = np.load(tmp_path / "a.npz")["frames"][0, 2:, :, SIZE[1] :, 0]
    np.testing.assert_array_equal(raw[:-2], np.rint(255 * beside))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--jsonl", "-", "--raw-output", "-"], "both use stdout"),
        (["--jsonl", "/dev/stdout", "--json"], "--json prints on stdout, which another output uses"),
        (["--jsonl", "/dev/fd/1", "--raw-output", "-"], "both use stdout"),
        (["--jsonl", "-", "--json"], "--json prints on stdout, which another output uses"),
        (["FILM", "--raw-output", "raw"], "--raw-output: got 2 sources, expected one"),
        (["FILM", "--push", "rtsp://127.0.0.1:1/a"], "--push: got 1 addresses for 2 sources, expected one per source"),
        (
            ["--push", "srt://127.0.0.1:1"],
            "--push: got srt://127.0.0.1:1, expected an address such as rtsp://host/path",
        ),
        (["FILM", "-o", "a.mp4"], "a.mp4: got 2 sources, expected a folder for their videos"),
        (["--raw", "4x4x1"], "--raw applies only to raw pictures on stdin"),
        (["-", "--raw", "4x4"], "got '4x4', expected HEIGHTxWIDTHxCHANNELS"),
        (["-", "-", "--raw", "4x4x1"], "got - more than once"),
        (["-"], "give the size with --raw HxWxC"),
        (["--silence", "3"], "--silence applies only to cameras and addresses"),
        (["--attempts", "3"], "--attempts applies only to cameras and addresses"),
        (["ftp://a/b"], "got the scheme ftp://"),
        (["--jsonl", "FILM"], "is an input and would be overwritten"),
        (["--jsonl", "same", "--raw-output", "same"], "same: is the path of two outputs"),
        (["--queue", "0"], "got 0, expected a whole number from 1 to 1,000"),
        (["absent.mp4", "--jsonl", "new"], "absent.mp4: no such file or folder; give a video, a folder"),
    ],
)
def test_invalid_options_are_refused_before_any_work(
    options: list[str], error: str, bundle: Path, films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(films[0]) if one == "FILM" else one for one in options]
    result = e3d("stream", bundle, films[0], *QUICK, *given, code=2)
    assert error in result.stderr
    assert result.stdout == ""
    assert {one.name for one in tmp_path.iterdir()} == {"a", "b"}


def test_a_camera_does_not_play_at_its_rate(bundle: Path) -> None:
    result = e3d("stream", bundle, "/dev/video0", *QUICK, "--realtime", code=2)
    assert "--realtime applies only to files and addresses, and no SOURCE is a file or address" in result.stderr


def test_a_truncated_source_does_not_stop_the_others(bundle: Path, films: list[Path], tmp_path: Path) -> None:
    cut, output = broken(tmp_path / "cut.mkv"), tmp_path / "beside"
    result = e3d("stream", bundle, cut, films[0], *QUICK, "-o", output, "--json", code=6)
    lost, whole = json.loads(result.stdout)["sources"]
    assert "broke off after" in result.stderr.splitlines()[-1]
    assert "broke off after" in lost["error"]
    assert whole["error"] is None
    assert whole["frames"] == frames_in(output / "2-film.mp4") == COUNT
    assert lost["frames"] == frames_in(output / "1-cut.mp4")


def test_a_closed_output_pipe_ends_the_stream_in_an_orderly_way(
    bundle: Path, films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(BytesIO):
        def write(self, content: Any) -> int:
            if self.tell():
                raise BrokenPipeError
            return super().write(content)

    out = Closing()
    monkeypatch.setattr(_sinks, "binary_stdout", lambda: nullcontext(out))
    result = e3d("stream", bundle, *films, *QUICK, "--jsonl", "-", "-o", tmp_path / "beside")
    assert len(out.getvalue().splitlines()) == 1
    assert "Error" not in result.stderr
    assert "model p50" in result.stderr
    assert all(frames_in(path) for path in (tmp_path / "beside").iterdir())


def test_a_full_disk_ends_it_with_its_name_and_the_video_so_far(
    bundle: Path, films: list[Path], tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    result = e3d("stream", bundle, films[0], *QUICK, "--jsonl", "/dev/full", "-o", tmp_path / "a.mp4", code=7)
    assert result.stderr.splitlines()[-1].startswith("Error: /dev/full: No space left on device; free space")
    assert "model p50" in result.stdout
    assert frames_in(tmp_path / "a.mp4") == 1


def test_videos_that_cannot_be_written_are_named_and_not_listed(
    bundle: Path, films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def failing(*_: Any, **__: Any) -> Iterator[Any]:
        def fail(_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield fail
        fail(None)

    monkeypatch.setattr(sinks, "writing", failing)
    output = tmp_path / "views"
    result = e3d("stream", bundle, *films, *QUICK, "-o", output, "--json", code=7)
    said = result.stderr.splitlines()
    assert [line.partition("; ")[0] for line in said[-2:]] == [f"Error: {output}: No space left on device"] * 2
    assert str(output) not in said
    assert [one["output"] for one in json.loads(result.stdout)["sources"]] == [None, None]


def test_raw_pictures_are_read_from_a_pipe_that_may_close(bundle: Path, tmp_path: Path) -> None:
    """Two processes in a shell, where `head` closes a real pipe."""
    frames = np.random.default_rng(0).integers(0, 256, (COUNT, *SIZE), np.uint8)
    (tmp_path / "raw").write_bytes(frames.tobytes())
    command = f'"{sys.executable}" -m e3d_deploy stream "{bundle}" - --raw 16x24x1 --jsonl - --backend onnxruntime'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} < raw | head -n 1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (first,) = lines(done.stdout)
    assert (first["source"], first["index"]) == ("stdin", 0)


def test_the_summary_says_if_copying_is_better(bundle: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "still.mkv", gray_levels(SIZE, [100] * 40))
    shown = e3d("stream", bundle, tmp_path / "still.mkv", *QUICK)
    assert f"{tmp_path / 'still.mkv'}: 2 frames ahead, copying the last picture is better" in shown.stdout
    (source,) = json.loads(e3d("stream", bundle, tmp_path / "still.mkv", *QUICK, "--json").stdout)["sources"]
    assert source["verdict"].startswith("2 frames ahead, copying the last picture is better")


def test_a_second_signal_leaves_no_video(
    bundle: Path, films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, seen = Follower.follow, []
    stopped, abandoned = threading.Event(), threading.Event()
    stop, abandon = SourceWorker.stop, SourceWorker.abandon

    def interrupted(self: Follower, picture: Any, **options: Any) -> Any:
        seen.append(picture)
        if len(seen) == 6:
            signal.raise_signal(signal.SIGINT)
            assert stopped.wait(60)
            signal.raise_signal(signal.SIGINT)
            assert abandoned.wait(60)
        return follow(self, picture, **options)

    def stopping(self: SourceWorker) -> None:
        stop(self)
        stopped.set()

    def abandoning(self: SourceWorker) -> None:
        abandon(self)
        abandoned.set()

    monkeypatch.setattr(Follower, "follow", interrupted)
    monkeypatch.setattr(SourceWorker, "stop", stopping)
    monkeypatch.setattr(SourceWorker, "abandon", abandoning)
    monkeypatch.setattr(workers, "ABANDON_S", 60.0)
    monkeypatch.setattr(_process, "SAME_S", 0.0)
    result = e3d("stream", bundle, films[0], *QUICK, "-o", tmp_path / "a.mp4", code=130)
    assert result.stdout == ""
    assert {one.name for one in tmp_path.iterdir()} == {"a", "b"}
