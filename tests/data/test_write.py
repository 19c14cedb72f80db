"""Written files hold every frame and its time; clips that a format cannot hold are refused first."""

import errno
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from e3d_deploy.data import write
from e3d_deploy.data.clips import play
from e3d_deploy.data.form import Form
from e3d_deploy.data.mosaic import GRAY, Mosaic
from e3d_deploy.data.write import check_size, exact_rate, gif_delays, write_clips, writing
from e3d_deploy.errors import ConfigError
from e3d_deploy.frames import to_pictures


def clip(frames: int = 10, channels: int = 1) -> np.ndarray[Any, Any]:
    """Return a clip of two pictures: a black one, from the middle on a ramp; the last frame has a small change."""
    found = np.zeros((1, frames, channels, 16, 24), np.float32)
    found[0, frames // 2 :] = np.linspace(0, 1, 16 * 24).reshape(16, 24)
    found[0, -1, :, 4:6, 5:8] = 0.2
    return found


def read_gif(path: Path) -> tuple[list[np.ndarray[Any, Any]], list[int]]:
    """Return the pictures of a GIF in RGB, and how long each is shown (ms)."""
    pictures, durations = [], []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames")):  # noqa: B009 (only GIFs have it)
            image.seek(number)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return pictures, durations


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_keeps_equal_frames(channels: int, tmp_path: Path) -> None:
    frames = clip(channels=channels)
    write_clips(tmp_path / "x.gif", frames)
    pictures, durations = read_gif(tmp_path / "x.gif")
    assert durations == 10 * [100]
    for picture, wanted in zip(pictures, to_pictures(frames[0]), strict=True):
        # A picture in colour may have 384 grays, which the palette reduces to 256.
        np.testing.assert_allclose(picture, np.broadcast_to(wanted, picture.shape), atol=2 if channels == 3 else 0)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.info["loop"] == 0


def test_a_gif_with_only_equal_frames_keeps_them(tmp_path: Path) -> None:
    write_clips(tmp_path / "x.gif", np.zeros((1, 4, 1, 8, 8), np.float32))
    assert read_gif(tmp_path / "x.gif")[1] == 4 * [100]
    write_clips(tmp_path / "x.gif", np.zeros((1, 1, 1, 8, 8), np.float32))
    assert read_gif(tmp_path / "x.gif")[1] == [100]


@pytest.mark.parametrize(
    ("rate", "first", "total"),
    [
        (10, [10, 10, 10], 1000),
        (60, [2, 1, 2], 167),
        (50, [2, 2, 2], 200),
        (30000 / 1001, [3, 4, 3], 334),
        (24000 / 1001, [4, 4, 5], 417),
        (0.5, [200, 200, 200], 20000),
        (100, [1, 1, 1], 100),
        (1000, [1, 0, 0], 10),
    ],
)
def test_the_times_of_a_gif_add_up(rate: float, first: list[int], total: int) -> None:
    delays = gif_delays(rate)
    found = [next(delays) for _ in range(100)]
    assert found[:3] == first
    assert sum(found) == total


def test_a_gif_with_a_high_rate_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clips(tmp_path / "x.gif", clip(), frames_per_second=50)
    assert caplog.messages == []
    write_clips(tmp_path / "x.gif", clip(), frames_per_second=60)
    assert sum(read_gif(tmp_path / "x.gif")[1]) == 170
    assert [message[:32] for message in caplog.messages] == ["GIF: has 60 frames per second, b"]
    caplog.clear()
    write_clips(tmp_path / "x.gif", clip(), frames_per_second=200)
    assert read_gif(tmp_path / "x.gif")[1] == 5 * [10]
    assert [message[:44] for message in caplog.messages] == ["GIF: holds at most 100 frames per second, so"]


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (10, Fraction(10)),
        (29.97, Fraction(2997, 100)),
        (30000 / 1001, Fraction(30000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (0.5, Fraction(1, 2)),
        (1 / 60, Fraction(1, 60)),
        (0.001, Fraction(1, 1000)),
    ],
)
def test_a_video_has_the_exact_rate(rate: float, exact: Fraction, tmp_path: Path) -> None:
    assert exact_rate(rate) == exact
    write_clips(tmp_path / "x.mp4", clip(3), frames_per_second=rate)
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].average_rate == exact
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_a_large_video_keeps_its_colours(tmp_path: Path) -> None:
    red = np.float32([0.8, 0.1, 0.1])[:, None, None]
    write_clips(tmp_path / "x.mp4", np.broadcast_to(red, (1, 2, 3, 720, 1280)))
    [found, _] = play(tmp_path / "x.mp4", Form(image_size=(8, 8), channels=3)).pictures
    assert np.abs(found / 255 - red[:, 0, 0]).max() < 0.02


def test_a_video_of_one_frame_holds_it(tmp_path: Path) -> None:
    write_clips(tmp_path / "x.mp4", clip(1)[..., :15, :23])
    with av.open(str(tmp_path / "x.mp4")) as container:
        [picture] = container.decode(video=0)
        assert (picture.height, picture.width) == (16, 24)  # sides are padded to even numbers


@pytest.mark.parametrize(
    ("name", "size", "zoom", "words"),
    [
        ("x.mp4", (64, 64), 257, "16448 pixels wide and 16448 high, but H.264 holds at most 16384 per side"),
        ("x.mp4", (6000, 6000), 1, "35651584 in all; give a smaller --zoom or fewer clips, or write .npz"),
        ("x.gif", (8, 66000), 1, "a GIF holds at most 65535 per side"),
        ("x.gif", (64, 64), 10**12, "a GIF holds"),
        ("pictures", (64, 64), 200, "a PNG holds at most"),
    ],
)
def test_a_picture_that_is_too_large_is_refused(
    name: str, size: tuple[int, int], zoom: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_size(tmp_path / name, size, 1, zoom=zoom)
    with pytest.raises(ConfigError, match=words), writing(tmp_path / name, size, 1, zoom=zoom):
        pass
    check_size(tmp_path / "x.npz", size, 7, zoom=zoom)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "rate"), [("x.mp4", 0.0009), ("x.gif", 0.0015), ("x.gif", 0)])
def test_a_rate_that_is_too_low_is_refused(name: str, rate: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shows a frame for at most \S+ s; write \.npz, or a folder"):
        check_size(tmp_path / name, (8, 8), 1, frames_per_second=rate)


@pytest.mark.parametrize(
    ("clips", "size", "compared", "grid"),
    [
        (1, (16, 16), False, (1, 1)),
        (2, (16, 16), False, (1, 2)),
        (7, (16, 16), False, (3, 3)),
        (1000, (64, 64), False, (32, 32)),
        (10000, (64, 64), False, (100, 100)),
        (6, (16, 64), False, (3, 2)),
        (2, (16, 16), True, (2, 1)),
        (10, (16, 16), True, (5, 2)),
    ],
)
def test_many_clips_are_laid_out_in_rows(
    clips: int, size: tuple[int, int], compared: bool, grid: tuple[int, int]
) -> None:
    mosaic = Mosaic(clips=clips, image_size=size, compared=compared)
    assert (mosaic.rows, mosaic.columns) == grid


def test_each_clip_is_at_its_position(tmp_path: Path) -> None:
    frames = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1, 1) / 5 * np.ones((1, 2, 1, 4, 4), np.float32)
    write_clips(tmp_path / "pictures", frames, zoom=2)
    picture = np.asarray(Image.open(tmp_path / "pictures" / "frame_0001.png"))
    assert picture.shape == (2 * 9, 2 * 14)
    middles = [[picture[y, x] for x in (4, 14, 24)] for y in (4, 14)]
    assert middles == [[0, 51, 102], [153, 204, 128]]


def test_truth_forecast_and_difference_are_side_by_side() -> None:
    forecast = np.full((1, 2, 1, 4, 4), 0.75, np.float32)
    truth = np.stack([np.ones((1, 1, 4, 4), np.float32), np.full((1, 1, 4, 4), np.nan, np.float32)], axis=1)
    known, unknown = Mosaic(clips=1, image_size=(4, 4), compared=True).play(forecast, truth)
    assert known.shape == (1, 4, 14)
    assert known[0, 0].tolist() == [*4 * [1], GRAY, *4 * [0.75], GRAY, *4 * [0.25]]
    assert unknown[0, 0].tolist() == [*4 * [GRAY], GRAY, *4 * [0.75], GRAY, *4 * [GRAY]]


def test_arrays_hold_the_truth_unchanged(tmp_path: Path) -> None:
    frames = clip()
    write_clips(tmp_path / "X.NPZ", frames, truth=np.full_like(frames, np.nan))
    with np.load(tmp_path / "X.NPZ") as arrays:
        assert arrays["frames"].shape == arrays["truth"].shape == (1, 10, 16, 24, 1)
        assert np.isnan(arrays["truth"]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["X.NPZ"]


def test_names_of_many_pictures_are_equally_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "DIGITS", 1)
    write_clips(tmp_path / "pictures", clip(12))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"frame_{number:02d}.png" for number in range(12)]


@pytest.mark.parametrize("name", ["2024-05-01T12:30:00.mp4", "-x.gif", "pipe:1.mp4", "a%04d.mp4", "A.MP4", "b.GIF"])
def test_names_that_look_like_syntax_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(Path(name), clip(2))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["-", ".gif", ".NPZ"])
def test_a_bare_suffix_is_not_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the name of a file or folder; give one, such as forecast"):
        write_clips(tmp_path / name, np.zeros((1, 1, 1, 8, 8), np.float32))
    assert not list(tmp_path.iterdir())


def test_a_picture_that_a_full_disk_cuts_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier pictures stay, because `e3d stream` keeps them."""

    class Full:
        def save(self, path: Path) -> None:
            path.touch()
            if path.name != "frame_0000.png":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, "_image_maker", lambda: lambda _: Full())
    with writing(tmp_path / "views", (8, 8), 1) as put:
        put(np.zeros((1, 8, 8), np.float32))
        with pytest.raises(OSError, match="No space left"):
            put(np.zeros((1, 8, 8), np.float32))
    assert [file.name for file in (tmp_path / "views").iterdir()] == ["frame_0000.png"]
