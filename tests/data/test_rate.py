"""Selection of frames from a source, and warnings about a different frame rate than in training."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy import checkpoint
from e3d_deploy.card import Card, Window
from e3d_deploy.data.clips import play, read_clips
from e3d_deploy.data.datasets import evaluation_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.rate import Selection, select, selected_frames, warn_of_interval
from e3d_deploy.data.sources import open_source
from e3d_deploy.errors import ConfigError
from tests.data.test_data import gray_levels, write_folder, write_video
from tests.tools import e3d

SIZE = (16, 24)
LEVELS = list(range(0, 240, 8))
"""Gray level of each of the 30 frames of the video."""
CODED = 3
"""Maximum change of a gray level by coding in H.264; measured 1."""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Write a video of 30 frames, each of one gray level, at 25 frames per second."""
    return write_video(tmp_path / "walk.mp4", gray_levels(SIZE, LEVELS))


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """Return a model whose card states a context of 4 frames, a horizon of 3 and 10 frames per second."""
    path = tmp_path / "tiny.safetensors"
    path.write_bytes((exported / "tiny.safetensors").read_bytes())
    checkpoint.write_card(path, Card(window=Window.of_rates(4, 3, [10.0])))
    return path


def assert_levels(frames: Any, expected: list[int]) -> None:
    """Check that frames [T, …] have the gray levels of the expected frames of the video."""
    found = np.asarray(frames, np.float64).reshape(len(frames), -1).mean(axis=1)
    assert len(found) == len(expected)
    assert np.abs(found - np.array(LEVELS)[expected]).max() <= CODED


@pytest.mark.parametrize(
    ("selection", "rate", "expected"),
    [
        (Selection(), None, [0, 1, 2, 3, 4, 5]),
        (Selection(every=1), None, [0, 1, 2, 3, 4, 5]),
        (Selection(every=2), None, [0, 2, 4]),
        (Selection(every=6), 25.0, [0]),
        (Selection(resample=10.0), 25.0, [0, 3, 5]),
        (Selection(resample=25.0), 25.0, [0, 1, 2, 3, 4, 5]),
        (Selection(resample=20.0), 10.0, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (Selection(resample=0.001), 25.0, [0]),
    ],
)
def test_a_selection_has_the_nearest_frames(selection: Selection, rate: float | None, expected: list[int]) -> None:
    stride = selection.stride(rate, name="clip")
    assert selected_frames(6, stride) == expected
    playing = (np.full(1, number) for number in range(6))
    assert [int(picture[0]) for picture in select(playing, stride)] == expected
    assert selected_frames(0, stride) == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: Selection(every=0),
        lambda: Selection(every=-2),
        lambda: Selection(resample=0.0),
        lambda: Selection(resample=-5.0),
        lambda: Selection(resample=float("nan")),
        lambda: Selection(resample=float("inf")),
        lambda: Selection(resample=1001.0),
        lambda: Selection(every=2, resample=5.0),
    ],
)
def test_an_invalid_selection_is_refused(build: Callable[[], Selection]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build()


def test_the_rate_of_a_source_that_states_none_is_unknown(video: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", {f"{n}.png": np.zeros(SIZE, np.uint8) for n in range(3)})
    np.save(tmp_path / "clip.npy", np.zeros((3, *SIZE, 1), np.uint8))
    size: dict[str, Any] = {"form": Form(image_size=SIZE, channels=1)}
    for path, rate in ((folder, None), (tmp_path / "clip.npy", None), (video, 25.0)):
        clips = read_clips(path, **size)
        assert (clips.rate, clips.frames_per_second) == (rate, rate or 10.0)
        assert open_source(str(path), split="train", length=2, **size).frames_per_second == ((rate,) if rate else ())
    assert (play(folder, **size).rate, play(folder, **size).frames_per_second) == (None, 10.0)


def test_clips_are_thinned_before_they_are_cut(video: Path, tmp_path: Path) -> None:
    size: dict[str, Any] = {"form": Form(image_size=SIZE, channels=1)}
    clips = read_clips(video, **size, most=4, selection=Selection(resample=10.0))
    assert clips.rate == 10
    assert_levels(clips.frames[0], [0, 3, 5, 8])
    thinned = read_clips(video, **size, selection=Selection(every=4))
    assert thinned.rate == 6.25
    np.save(tmp_path / "clip.npy", read_clips(video, **size).frames)
    for path, rates in ((video, (6.25,)), (tmp_path / "clip.npy", ())):
        source = open_source(str(path), split="test", length=2, **size, selection=Selection(every=4))
        assert source.frames_per_second == rates
        (clip,) = source.clips
        assert len(clip) == 8
        assert_levels(clip[:], list(range(0, 30, 4)))
        assert_levels(clip[3:5], [12, 16])
        assert clip[5:5].shape == (0, *SIZE, 1)


def test_source_without_a_rate_is_not_resampled(video: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", {f"{n}.png": np.zeros(SIZE, np.uint8) for n in range(3)})
    np.save(tmp_path / "clip.npy", np.zeros((3, *SIZE, 1), np.uint8))
    size: dict[str, Any] = {"form": Form(image_size=SIZE, channels=1), "selection": Selection(resample=5.0)}
    for path in (folder, tmp_path / "clip.npy"):
        with pytest.raises(ConfigError, match="has no known frame rate, which --resample 5 needs; give --every"):
            read_clips(path, **size)
        with pytest.raises(ConfigError, match="has no known frame rate"):
            open_source(str(path), split="train", length=2, skip_bad=True, **size)


def test_a_source_with_fixed_windows_allows_no_selection(tmp_path: Path) -> None:
    size: dict[str, Any] = {
        "form": Form(image_size=(64, 64), channels=1),
        "length": 2,
        "split": "test",
        "selection": Selection(every=2),
    }
    np.save(tmp_path / "mnist_test_seq.npy", np.zeros((20, 3, 64, 64), np.uint8))
    (tmp_path / "kth" / "boxing" / "person17_boxing_d1").mkdir(parents=True)
    for path in ("mnist_test_seq.npy", "kth"):
        with pytest.raises(ConfigError, match="fixes the frames of its windows; omit --every"):
            open_source(str(tmp_path / path), **size)
    with pytest.raises(ConfigError, match="is generated, so it has no frame rate; omit --every"):
        evaluation_data("moving-mnist", most=1, **size)


@pytest.mark.parametrize(
    ("rates", "selection", "advice"),
    [
        ([10.0], Selection(), None),
        ([12.4], Selection(), None),
        ([8.4], Selection(), None),
        ([None], Selection(), None),
        ([12.6], Selection(), "--resample 10"),
        ([8.2], Selection(), "--resample 10"),
        ([29.97], Selection(), "--every 3"),
        ([25.0], Selection(), "--resample 10"),
        ([15.0], Selection(every=2), "--every 3"),
        ([30.0], Selection(resample=30.0), "--resample 10"),
        ([30.0, 10.0], Selection(), "--resample 10"),
        ([5.0], Selection(), "--resample 10"),
        ([12.3, 8.2], Selection(), "--resample 10"),
        ([5.0], Selection(every=2), "--every 1"),
    ],
)
def test_remedy_fits_the_ratio_of_the_intervals(
    rates: list[float | None], selection: Selection, advice: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    window = Window.of_rates(4, 3, [10.0])
    with caplog.at_level(logging.WARNING):
        warn_of_interval("walk.mp4", rates, window, selection=selection)
        warn_of_interval("walk.mp4", rates, Window.of_rates(4, 3, []), selection=selection)
        warn_of_interval("walk.mp4", rates, None, selection=selection)
    assert [message.rpartition("; give ")[2] for message in caplog.messages] == ([advice] if advice else [])
    assert all("the model was trained with one every 100 ms" in message for message in caplog.messages)


def said(*arguments: object) -> list[str]:
    """Run a command; return the lines it prints about frame intervals."""
    return [line for line in e3d(*arguments).stderr.splitlines() if "has a frame every" in line]


def test_commands_warn_once_of_another_frame_rate(model: Path, video: Path, tmp_path: Path) -> None:
    e3d("export", model, "-o", tmp_path / "tiny.e3d", "--batch", 1)
    commands: list[list[object]] = [
        ["predict", model, video, "-o", tmp_path / "o.npz"],
        ["predict", tmp_path / "tiny.e3d", video, "-o", tmp_path / "o.npz"],
        ["stream", model, video, "--horizon", 1],
        ["evaluate", model, "--data", video],
    ]
    line = f"{video}: has a frame every 40 ms, the model was trained with one every 100 ms; give --resample 10"
    for command in commands:
        assert said(*command) == [line]
        assert said(*command, "--resample", 10) == []


def test_remedy_that_a_command_names_silences_it(model: Path, tmp_path: Path) -> None:
    checkpoint.write_card(model, Card(window=Window.of_rates(4, 3, [12.5])))
    fast = write_video(tmp_path / "fast.mp4", gray_levels(SIZE, LEVELS))
    (line,) = said("stream", model, fast, "--horizon", 1)
    assert line.endswith("give --every 2")
    assert said("stream", model, fast, "--horizon", 1, "--every", 2) == []


def test_predict_continues_the_selected_frames(model: Path, video: Path, tmp_path: Path) -> None:
    frames = read_clips(video, Form(image_size=SIZE, channels=1)).frames[0]
    for option, number, taken, rate in (("--every", 3, [0, 3, 6, 9], 25 / 3), ("--resample", 10, [0, 3, 5, 8], 10)):
        np.save(tmp_path / "taken.npy", frames[taken])
        e3d("predict", model, tmp_path / "taken.npy", "-o", tmp_path / "expected.npz")
        e3d("predict", model, video, option, number, "-o", tmp_path / "found.npz")
        found, expected = (np.load(tmp_path / f"{name}.npz")["frames"] for name in ("found", "expected"))
        np.testing.assert_array_equal(found, expected)
        assert found.shape == (1, 3, *SIZE, 1)
        e3d("predict", model, video, option, number, "-o", tmp_path / "film.mp4")
        assert read_clips(tmp_path / "film.mp4", Form(image_size=SIZE, channels=1)).rate == pytest.approx(rate)


def test_stream_reads_the_selected_frames(model: Path, video: Path, tmp_path: Path) -> None:
    for option, number, count, rate in (
        ("--every", 4, 8, 6.25),
        ("--resample", 10, 12, 10),
        ("--resample", 50, 59, 50),
    ):
        output = tmp_path / f"{number}.mp4"
        result = e3d("stream", model, video, option, number, "--horizon", 1, "-o", output, "--zoom", 1, "--json")
        (summary,) = json.loads(result.stdout)["sources"]
        assert (summary["frames"], summary["source_frames_per_second"]) == (count, rate)
        written = read_clips(output, Form(image_size=(16, 48), channels=1))
        assert (written.frames.shape[1], written.rate) == (count, rate)


def test_evaluate_cuts_windows_from_the_selected_frames(model: Path, video: Path, tmp_path: Path) -> None:
    frames = read_clips(video, Form(image_size=SIZE, channels=1)).frames[0]
    for option, number, selection in (
        ("--every", 3, Selection(every=3)),
        ("--resample", 10, Selection(resample=10.0)),
    ):
        np.save(tmp_path / "taken.npy", frames[selected_frames(30, selection.stride(25.0, name="video"))])
        reports = [
            json.loads(e3d("evaluate", model, "--data", *source, "--json").stdout)
            for source in ((video, option, number), (tmp_path / "taken.npy",))
        ]
        assert reports[0]["clips"] == 1
        assert reports[0]["conventions"] == reports[1]["conventions"]


@pytest.mark.parametrize(
    "options",
    [
        ["--every", 0],
        ["--every", -1],
        ["--every", 1.5],
        ["--resample", 0],
        ["--resample", -2],
        ["--resample", "nan"],
        ["--resample", "inf"],
        ["--resample", 2000],
        ["--every", 2, "--resample", 10],
    ],
)
def test_options_with_an_invalid_selection_are_refused(
    options: list[object], model: Path, video: Path, tmp_path: Path
) -> None:
    for command in (
        ["predict", model, video, "-o", tmp_path / "o.npz"],
        ["stream", model, video],
        ["evaluate", model, "--data", video],
    ):
        line = e3d(*command, *options, code=2).stderr.splitlines()[-1]
        assert line.startswith("Error: ")
        assert "every" in line or "resample" in line
    assert not (tmp_path / "o.npz").exists()
