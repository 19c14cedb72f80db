"""`e3d predict` and `e3d stream`: the start of the context, the truth next to the forecast, and limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from e3d_deploy import metrics
from e3d_deploy.commands import _output, _sources
from tests.tools import e3d


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ten different frames."""
    path = tmp_path_factory.mktemp("video") / "video.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (10, 16, 24, 1), np.uint8))
    return path


def predicted(exported: Path, source: Path, output: Path, *options: object) -> tuple[dict[str, Any], str]:
    """Return the written arrays and the text on stderr."""
    result = e3d("predict", exported / "tiny.e3d", source, "-o", output, "--context", 4, *options)
    assert result.stdout == f"{output}\n"
    with np.load(output) as arrays:
        return dict(arrays), result.stderr


def test_the_context_can_begin_anywhere(exported: Path, video: Path, tmp_path: Path) -> None:
    later, _ = predicted(exported, video, tmp_path / "later.npz", "--start", 3, "--horizon", 2)
    np.save(tmp_path / "cut.npy", np.load(video)[3:])
    first, _ = predicted(exported, tmp_path / "cut.npy", tmp_path / "first.npz", "--horizon", 2)
    np.testing.assert_array_equal(later["frames"], first["frames"])
    np.testing.assert_array_equal(later["truth"][0], np.load(video)[7:9] / np.float32(255))


def test_the_error_is_that_of_the_metrics(exported: Path, video: Path, tmp_path: Path) -> None:
    arrays, said = predicted(exported, video, tmp_path / "o.npz", "--horizon", 3)
    forecast, truth = (np.moveaxis(arrays[name][0], -1, 1) for name in ("frames", "truth"))
    last = np.moveaxis(np.load(video)[3:4], -1, 1) / np.float32(255)
    assert f"forecast: MSE {metrics.mse(forecast.clip(0, 1), truth).mean():.4g} per frame\n" in said
    assert f"copying the last frame: MSE {metrics.mse(last, truth).mean():.4g} per frame\n" in said


def test_truth_that_ends_early_is_reported(exported: Path, video: Path, tmp_path: Path) -> None:
    arrays, said = predicted(exported, video, tmp_path / "o.npz", "--horizon", 3, "--start", 5)
    assert f"truth for 1 of 3 frames: {video} ends before the forecast does" in said
    assert np.isnan(arrays["truth"][0]).all(axis=(1, 2, 3)).tolist() == [False, True, True]
    arrays, said = predicted(exported, video, tmp_path / "o.npz", "--horizon", 3, "--start", 6)
    assert f"no truth: {video} ends before the forecast begins, so the error is unknown" in said
    assert "MSE" not in said
    assert list(arrays) == ["frames"]


def test_pictures_show_the_truth_by_default(exported: Path, video: Path, tmp_path: Path) -> None:
    for name, options, width in (("beside", [], 3 * 24 + 2), ("alone", ["--forecast-only"], 24)):
        arguments = ["predict", exported / "tiny.e3d", video, "-o", tmp_path / name, "--context", 4, "--horizon", 2]
        e3d(*arguments, *options)
        with Image.open(tmp_path / name / "frame_0000.png") as image:
            assert image.size == (width, 16)
    beside = np.asarray(Image.open(tmp_path / "beside" / "frame_0001.png")).astype(int)
    np.testing.assert_array_equal(beside[:, :24], np.load(video)[5, :, :, 0])
    np.testing.assert_array_equal(
        beside[:, 25:49], np.asarray(Image.open(tmp_path / "alone" / "frame_0001.png")).astype(int)
    )
    np.testing.assert_allclose(beside[:, 50:], abs(beside[:, 25:49] - beside[:, :24]), atol=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--start", 7], "has 10 frames, the context of 4 begins at frame 7; give --start 6 or less"),
        (["--start", 10**30], "give --start 6 or less"),
        (["--start", 1, "--context", 11], "begins at frame 1; give a longer clip or a smaller --context"),
        (["--zoom", 10**9], "pixels wide"),
    ],
)
def test_limits_are_checked_before_the_work(
    options: list[object], words: str, exported: Path, video: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.gif"
    result = e3d("predict", exported / "tiny.e3d", video, "-o", output, "--context", 4, *options, code=2)
    assert words in result.stderr.splitlines()[-1]
    assert not output.exists()


def test_clips_that_end_before_the_context_are_left_out(exported: Path, video: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "clips").mkdir()
    for name, length in (("long", 10), ("short", 8)):
        np.save(folder / f"{name}.npy", np.load(video)[:length])
    arrays, said = predicted(exported, folder, tmp_path / "o.npz", "--start", 5, "--horizon", 1)
    assert len(arrays["frames"]) == 1
    assert f"{folder}: 1 of 2 clips have fewer than 9 frames and are skipped ({folder / 'short.npy'}" in said
    options = ["-o", tmp_path / "p.npz", "--context", 4, "--start", 7]
    said = e3d("predict", exported / "tiny.e3d", folder, *options, code=2).stderr
    assert "long.npy, clip 0: has 10 frames, the context of 4 begins at frame 7; give --start 6 or less" in said


@pytest.mark.parametrize("command", ["predict", "stream"])
def test_a_horizon_that_needs_too_much_memory_is_refused(
    command: str, exported: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.memory.free_memory", lambda: 1000)
    source = video if command == "predict" else tmp_path / "none.mp4"
    options = ["-o", tmp_path / "o.mp4", "--horizon", 1000]
    line = e3d(command, exported / "tiny.e3d", source, *options, code=7).stderr.splitlines()[-1]
    assert line.startswith("Error: --horizon 1000: takes ")
    assert line.endswith(" GB are free here; give a smaller --horizon" + ", or fewer clips" * (command == "predict"))


def test_long_work_shows_its_progress(
    exported: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_output, "INTERVAL_S", 0.0)
    _, said = predicted(exported, video, tmp_path / "o.npz", "--horizon", 3)
    lines = [line for line in said.splitlines() if ": frame " in line]
    assert [line.split(": ")[1].split(",")[0] for line in lines] == [f"frame {n} of 6" for n in range(1, 7)]
    assert lines[0].endswith(" left")


def test_a_stream_reports_the_time_of_a_long_forecast(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sources, "LONG_S", 0.0)
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("L", (24, 16), 100 * number).save(tmp_path / "pictures" / f"{number}.png")
    said = e3d("stream", exported / "tiny.e3d", tmp_path / "pictures", "--horizon", _sources.SAMPLE + 1).stderr
    assert said.count("a forecast of ") == 1
    said = e3d("stream", exported / "tiny.e3d", tmp_path / "pictures", "--horizon", _sources.SAMPLE).stderr
    assert "a forecast of" not in said
