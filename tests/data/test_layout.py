"""Axes and number types of arrays."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.data.readers import Reader
from e3d_deploy.data.sources import open_source
from e3d_deploy.errors import ConfigError, ShapeError
from e3d_deploy.progress import silent

SIZE = (32, 32)
GRAY = Form(image_size=SIZE, channels=1)
RGB = Form(image_size=SIZE, channels=3)


@pytest.fixture(scope="module")
def clips() -> NDArray[np.uint8]:
    """Return clips of moving digits, uint8 [N, T, H, W]."""
    digits = load_digits("test")
    made = [moving_mnist(digits, np.random.default_rng(k), length=9, image_size=SIZE)[..., 0] for k in range(6)]
    found = np.stack(made)
    return found if found.dtype == np.uint8 else (255 * found).astype(np.uint8)


def opened(path: Path, array: NDArray[Any], form: Form = GRAY) -> tuple[NDArray[Any], Reader]:
    """Write an array; return the clips that are read from it, and the reader."""
    np.save(path, array)
    reader = Reader(form=form, skip_bad=False, progress=silent)
    return np.stack([clip[:] for _, clip in reader.open(path)]), reader


@pytest.mark.parametrize(
    ("order", "layout"),
    [("NTHW", "NTHW"), ("TNHW", "TNHW"), ("NTHWC", "NTHWC"), ("NTCHW", "NTCHW")],
)
def test_axes_are_recognised(tmp_path: Path, clips: NDArray[np.uint8], order: str, layout: str) -> None:
    stored = np.einsum(f"NTHWC->{order if 'C' in order else order + 'C'}", clips[..., None])
    stored = stored if "C" in order else stored[..., 0]
    frames, reader = opened(tmp_path / "clips.npy", np.ascontiguousarray(stored))
    assert reader.layouts == [layout]
    np.testing.assert_array_equal(frames[..., 0], clips)
    assert len(reader.remarks.texts) == (len(order) == 4)  # only if the layout was guessed from the values


@pytest.mark.parametrize(("shape", "layout"), [((9, 32, 32), "THW"), ((9, 1, 32, 32), "TCHW")])
def test_one_gray_clip_needs_no_axis_of_colours(
    tmp_path: Path, clips: NDArray[np.uint8], shape: tuple[int, ...], layout: str
) -> None:
    frames, reader = opened(tmp_path / "clip.npy", clips[0].reshape(shape))
    assert reader.layouts == [layout]
    np.testing.assert_array_equal(frames[0, ..., 0], clips[0])


def test_colours_may_come_first(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)
    first = np.ascontiguousarray(np.moveaxis(clip, -1, 1))
    for array in (first, np.stack([first, first])):
        frames, _ = opened(tmp_path / "clip.npy", array, RGB)
        np.testing.assert_array_equal(frames[-1], clip)


@pytest.mark.parametrize(
    ("array", "form", "message"),
    [
        (np.random.default_rng(0).integers(0, 256, (9, 7, *SIZE), np.uint8), GRAY,
         r"may be NTHW \(9 clips of 7 frames\), or TNHW \(7 clips of 9 frames\); give --layout"),
        (np.zeros((9, 7, *SIZE), np.uint8), GRAY, "may be NTHW .*, or TNHW"),
        (np.zeros((9, 3, *SIZE), np.uint8), GRAY, r"give --layout .*, or convert it to gray if it has 3 colours$"),
        (np.zeros((3, 9, *SIZE), np.uint8), GRAY, r"TNHW .* convert it to gray if it has 3 colours$"),
        (np.zeros((3, 9, *SIZE), np.uint8), RGB, r"fits only CTHW, .* transpose it to \[T, H, W, C\]"),
        (np.zeros((9, *SIZE, 3), np.uint8), GRAY, r"frames \[32, 32, 3\], expected \[32, 32, 1\]"),
    ],
)  # fmt: skip
def test_ambiguous_axes_are_refused_with_the_option(
    tmp_path: Path, array: NDArray[Any], form: Form, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        opened(tmp_path / "clips.npy", array, form)


def test_five_axes_that_look_transposed_are_refused(tmp_path: Path, clips: NDArray[np.uint8]) -> None:
    transposed = np.ascontiguousarray(clips.swapaxes(0, 1)[..., None])
    with pytest.raises(ShapeError, match=r"NTHWC \(9 clips of 6 frames\), or TNHWC \(6 clips of 9 frames\)"):
        opened(tmp_path / "clips.npy", transposed)
    frames, _ = opened(tmp_path / "clips.npy", transposed, Form(image_size=SIZE, channels=1, layout="tnhwc"))
    np.testing.assert_array_equal(frames[..., 0], clips)


def test_a_given_layout_decides(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, *SIZE), np.uint8)
    as_clips, _ = opened(tmp_path / "noise.npy", noise, Form(image_size=SIZE, channels=1, layout="bthw"))
    as_frames, _ = opened(tmp_path / "noise.npy", noise, Form(image_size=SIZE, channels=1, layout="TNHW"))
    np.testing.assert_array_equal(as_clips[..., 0], noise)
    np.testing.assert_array_equal(as_frames[..., 0], noise.swapaxes(0, 1))
    with pytest.raises(ShapeError, match=r"got \[9, 7, 32, 32\], expected TCHW with H 32, W 32 and C 1"):
        opened(tmp_path / "noise.npy", noise, Form(image_size=SIZE, channels=1, layout="TCHW"))
    with pytest.raises(ConfigError, match="layout: got 'XY', expected one of THW"):
        Form(image_size=SIZE, channels=1, layout="XY")


def test_the_published_name_decides_if_the_values_do_not(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 3, *SIZE), np.uint8)
    frames, reader = opened(tmp_path / "mnist_test_seq.npy", noise)
    assert (reader.layouts, frames.shape) == (["TNHW"], (3, 9, *SIZE, 1))


def test_only_the_file_counts_for_the_published_name(tmp_path: Path) -> None:
    (folder := tmp_path / "mnist_test_seq_v2").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, *SIZE), np.uint8)
    with pytest.raises(ShapeError, match=r"may be NTHW .*, or TNHW"):
        opened(folder / "mine.npy", noise)
    with pytest.raises(ShapeError, match="convert it to gray if it has 3 colours"):
        opened(folder / "colours.npy", noise[:, :3])


def test_a_layout_that_an_error_names_can_be_given(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 9, *SIZE), np.uint8)
    with pytest.raises(ShapeError) as raised:
        opened(tmp_path / "noise.npy", noise)
    named = re.findall(r"[NTCHW]{4}(?= \()", str(raised.value))
    assert named == ["NTHW", "TNHW"]
    for layout in named:
        opened(tmp_path / "noise.npy", noise, Form(image_size=SIZE, channels=1, layout=layout))


def moving_square(frames: int, *, colours: int | None = None) -> NDArray[np.uint8]:
    """Return a soft square that moves slowly over a static background, uint8 [T, H, W] or [T, H, W, C]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    clip = np.stack([np.exp(-((x - 8 - 0.3 * t) ** 2 + (y - 12) ** 2) / 12) for t in range(frames)])
    stored = (255 * clip).astype(np.uint8)
    return stored if colours is None else np.stack([stored // (1 + c) for c in range(colours)], axis=-1)


@pytest.mark.parametrize(
    ("order", "form", "readings"),
    [
        ("HWT", GRAY, r"THW \(32 frames\), or HWT .*; give --layout THW, or transpose it .* if it is HWT or HTW$"),
        ("HWTC", GRAY, r"THWC \(32 frames\), or HWTC"),
        ("HWTC", RGB, r"THWC \(32 frames of 3 colours\), or HWTC"),
        ("NHWT", GRAY, r"NTHW \(2 clips of 32 frames\), .*or NHWT \(2 clips of 32 frames\), .* if it is NHWT or NHTW$"),
        ("NHWTC", RGB, r"NTHWC .* or NHWTC"),
    ],
)
def test_time_that_may_be_the_last_axis_is_refused(tmp_path: Path, order: str, form: Form, readings: str) -> None:
    clip = moving_square(32, colours=form.channels)
    whole = np.moveaxis(np.stack([clip, clip[::-1]]), 1, 3)  # [N, H, W, T, C]
    whole = whole if "N" in order else whole[0]
    whole = whole if "C" in order else whole[..., 0]
    with pytest.raises(ShapeError, match=readings):
        opened(tmp_path / "clips.npy", np.ascontiguousarray(whole), form)


@pytest.mark.parametrize("order", ["THW", "THWC", "NTHW"])
def test_leading_time_of_a_cube_is_recognised_by_its_values(tmp_path: Path, order: str) -> None:
    clip = moving_square(32)
    stored = {"THW": clip, "THWC": clip[..., None], "NTHW": np.stack([clip, clip.swapaxes(1, 2)])}[order]
    frames, reader = opened(tmp_path / "clips.npy", np.ascontiguousarray(stored))
    assert reader.layouts == [order]
    assert re.search(r"read as .*32 frames \(.*\), because frames change less along T", reader.remarks.texts[0])
    np.testing.assert_array_equal(frames[0, ..., 0], clip)


def upright(kind: str) -> NDArray[np.uint8]:
    """Return vertical shapes that move sideways, uint8 [T, H, W]; all rows of a frame are similar."""
    rng = np.random.default_rng(0)
    time, across = np.mgrid[:32, :32]
    lines = rng.random((32, 32))  # [T, W]
    if kind.startswith("bars"):
        lines = 0.5 + 0.4 * np.sin((across - time) * 0.4)
    elif kind == "poles":  # poles move alternately left and right
        places = [(across - 4 * k - (-1) ** k * time + 16) % 32 - 16 for k in range(8)]
        lines = sum(0.4 * np.exp(-(place**2) / 2) for place in places)
    film = np.repeat(lines[:, None], 32, axis=1)
    if kind == "bars before birds":
        y, x = np.mgrid[:32, :32]
        for k in range(6):
            birds = [np.exp(-((x - 5 * k - 0.2 * t) ** 2 + (y - 5 * k) ** 2) / 8) for t in range(32)]
            film = np.maximum(film, np.stack(birds))
    elif kind == "noisy flicker":
        film = film + rng.normal(0, 0.02, film.shape)
    return (255 * np.clip(film, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("order", ["HWT", "HTW", "NHWT"])
@pytest.mark.parametrize("kind", ["bars", "poles", "bars before birds", "flicker", "noisy flicker"])
def test_vertical_shapes_that_move_sideways_are_not_read_along_h(tmp_path: Path, kind: str, order: str) -> None:
    film = upright(kind)
    stored = np.einsum(f"THW->{order.strip('N')}", film)
    stored = np.stack([stored] * 5) if "N" in order else stored
    with pytest.raises(ShapeError, match="which may be"):
        opened(tmp_path / "clips.npy", np.ascontiguousarray(stored))


def test_time_that_may_be_the_middle_axis_is_refused(tmp_path: Path) -> None:
    wide = Form(image_size=(24, 32), channels=1)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 32), np.uint8)
    with pytest.raises(ShapeError, match=r"THW \(24 frames\), or HTW \(24 frames\)"):
        opened(tmp_path / "clips.npy", noise, wide)


def orbit(frames: int) -> NDArray[np.uint8]:
    """Return a soft spot that moves along a curve, uint8 [T, H, W]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    places = ((16 + 10 * np.sin(t / 9), 16 + 10 * np.cos(t / 13)) for t in range(frames))
    return (255 * np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 40) for a, b in places])).astype(np.uint8)


def days() -> NDArray[np.uint8]:
    """Return days of hourly pictures, where hours differ more than days, uint8 [N, T, H, W]."""
    _, x = np.mgrid[: SIZE[0], : SIZE[1]]
    day = np.stack([120 + 100 * np.sin(2 * np.pi * hour / 24 + x / 20) for hour in range(24)])
    return (day + np.random.default_rng(0).normal(0, 1, (30, *day.shape))).astype(np.uint8)


def every_fourth_frame() -> NDArray[np.uint8]:
    film = orbit(150)
    return np.stack([film[start : start + 48 : 4] for start in range(100)])


def flows() -> NDArray[np.uint8]:
    """Return two colours that are not RGB, with the colours first, uint8 [T, C, H, W]."""
    return np.stack([moving_square(48), moving_square(48)[:, ::-1]], axis=1)


@pytest.mark.parametrize("made", [days, every_fourth_frame, flows])
def test_clips_that_differ_less_than_frames_are_not_read_as_time(
    tmp_path: Path, made: Callable[[], NDArray[np.uint8]]
) -> None:
    with pytest.raises(ShapeError, match=r"may be NTHW .*, or TNHW"):
        opened(tmp_path / "clips.npy", made())


@pytest.mark.parametrize("step", [4, 12])
def test_ordered_windows_of_one_film_are_read_as_clips(tmp_path: Path, step: int) -> None:
    film = orbit(12 + 14 * step)
    windows = np.stack([film[start : start + 12] for start in range(0, len(film) - 11, step)])
    frames, reader = opened(tmp_path / "clips.npy", windows)
    assert reader.layouts == ["NTHW"]
    np.testing.assert_array_equal(frames[..., 0], windows)


def test_three_frames_next_to_three_colours_are_refused(tmp_path: Path) -> None:
    clip = np.moveaxis(moving_square(3, colours=3), -1, 0)  # [C, T, H, W]
    for array, readings in ((clip, "TCHW .* or CTHW .* if it is CTHW"), (np.stack([clip] * 5), "NTCHW .* or NCTHW")):
        with pytest.raises(ShapeError, match=readings):
            opened(tmp_path / "clips.npy", np.ascontiguousarray(array), RGB)
    frames, _ = opened(tmp_path / "clips.npy", clip, Form(image_size=SIZE, channels=3, layout="TCHW"))
    assert frames.shape == (1, 3, *SIZE, 3)


# Values


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            np.uint16,
            "got uint16, .* write it as float32 divided by the value of white: 65535 for 16 bits, 4095 for 12, 1023",
        ),
        (np.int64, "got int64, .* write it as uint8 if its values are 0 to 255"),
        (np.int8, "got int8"),
        (np.complex64, "got complex64"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path: Path, kind: type, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        opened(tmp_path / "clips.npy", np.zeros((9, *SIZE, 1), kind))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_true_is_white(tmp_path: Path, suffix: str) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (9, *SIZE, 1)).astype(bool)
    path = tmp_path / f"mask{suffix}"
    np.savez(path, frames=mask) if suffix == ".npz" else np.save(path, mask)
    ((_, clip),) = Reader(form=GRAY, skip_bad=False, progress=silent).open(path)
    np.testing.assert_array_equal(clip[:], 255 * mask.astype(np.uint8))


def test_a_source_that_uses_a_tenth_of_the_range_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (9, *SIZE, 1), np.uint8)
    for name, array, said in (("ones", mask, True), ("white", 255 * mask, False), ("floats", mask * 1.0, False)):
        np.save(tmp_path / f"{name}.npy", array)
        caplog.clear()
        source = open_source(str(tmp_path / f"{name}.npy"), GRAY, split="train", length=9)
        warned = [text for _, level, text in caplog.record_tuples if level == logging.WARNING]
        assert [text for text in warned if "less than a tenth of the range" in text] == list(source.remarks)
        assert bool(source.remarks) == said


def test_frames_are_counted_once_for_the_range(tmp_path: Path) -> None:
    np.save(tmp_path / "ones.npy", np.ones((5, *SIZE, 1), np.uint8))
    source = open_source(str(tmp_path / "ones.npy"), GRAY, split="train", length=5)
    assert "in 5 frames, less than a tenth of the range" in source.remarks[0]
