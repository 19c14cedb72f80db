"""Data as users have them: formats, splits, windows, memory and errors."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from e3d_deploy.cli import main
from e3d_deploy.data import arrays
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.datasets import FixedWindows, Mixture, Shuffled, Windows, evaluation_data, training_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import find_windows, resize_bilinear
from e3d_deploy.data.sources import Source, fixed_windows, open_source
from e3d_deploy.data.splits import by_time, members_of
from e3d_deploy.data.storage import Scratch
from e3d_deploy.errors import ClipError, ConfigError, E3DError, ShapeError
from tests.data.test_data import gray_levels, write_folder, write_video
from tests.golden import GOLDEN, read
from tests.tools import with_form

SIZE = (16, 24)
SPLITS = ("train", "valid", "test")
KTH_FRAMES = 1e-6  # measured 0: bit for bit equal to OpenCV
READING_MB = 30  # maximum growth of memory while 300 MB are read in windows; measured 5.8
UNPACKING_MB = 30  # maximum growth of memory while 200 MB are unpacked and read; measured 6.6
CODED = 6  # gray levels between a picture and its video, as in test_data.py


def source_of(path: Path | str, **changes: Any) -> Source:
    options = {"split": "train", "image_size": SIZE, "channels": 1, "length": 4}
    return open_source(str(path), **with_form(**{**options, **changes}))


def numbered(clips: int, length: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return clips [B, T, H, W, 1] whose pixels are 10 times the number of the clip, plus that of the frame."""
    numbers = 10 * np.arange(clips)[:, None] + np.arange(length)
    return np.broadcast_to(numbers[..., None, None, None], (clips, length, *size, 1)).astype(np.uint8)


def first_pixels(source: Source) -> list[list[float]]:
    """Return the first pixel of each frame, clip by clip."""
    return [clip[:][:, 0, 0, 0].tolist() for clip in source.clips]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings, except about the range of values, which is small in most of these clips."""
    return [
        message
        for name, level, message in caplog.record_tuples
        if level == logging.WARNING and name != "e3d_deploy.data.levels"
    ]


# Moving MNIST in the format of google/e3d_lstm

TINY = GOLDEN / "mnist_tiny.npz"


def tiny(**changes: Any) -> dict[str, NDArray[Any]]:
    return {**read(TINY)[0], **changes}


def mnist(path: Path | str, **changes: Any) -> Source:
    return source_of(path, **{"image_size": (16, 16), "length": 6, **changes})


def original_batches(count: int, size: int) -> int:
    """Return the number of batches that the original makes of clips; it drops the last batch.

    Source: google/e3d_lstm src/data_provider/mnist.py and kth_action.py, no_batch_left.
    """
    return max(count - 1, 0) // size


@pytest.mark.parametrize("size", range(1, 7))
def test_batches_of_moving_mnist_are_those_of_the_original(size: int) -> None:
    recorded = read(GOLDEN / "mnist_batches.npz")[0]
    windows = FixedWindows(mnist(TINY), length=6)
    count = original_batches(len(windows), size)
    assert count == recorded[f"bs{size}/count"]
    for number in range(count):
        batch = torch.stack([windows[number * size + place] for place in range(size)])
        np.testing.assert_array_equal(batch.permute(0, 1, 3, 4, 2), recorded[f"bs{size}/batch{number}"])


@pytest.mark.parametrize("split", SPLITS)
def test_moving_mnist_in_a_file_is_not_divided(split: str) -> None:
    source = mnist(TINY, split=split)
    assert (source.kind, source.held_out, len(source.clips)) == ("moving-mnist-npz", False, 6)
    assert source.windows is not None
    assert source.windows.tolist() == [[number, 0] for number in range(6)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", ["one", "two", "mnist_test_seq"])
def test_undivided_files_are_remarked(form: str, split: str, tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / "second.npz")
    np.save(tmp_path / "mnist_test_seq.npy", np.random.default_rng(0).integers(0, 256, (20, 7, 16, 16), np.uint8))
    files = {"one": TINY, "two": f"{TINY},{tmp_path}/second.npz", "mnist_test_seq": tmp_path / "mnist_test_seq.npy"}
    text = str(files[form])
    said = f"{text}: has the same clips in each split; to train on it, give another file as --valid-data"
    assert (said in mnist(text, split=split).remarks) == (split != "train")


def test_longer_clips_are_cut_to_their_first_frames() -> None:
    whole, cut = FixedWindows(mnist(TINY), length=6), FixedWindows(mnist(TINY, length=4), length=4)
    assert len(cut) == len(whole)
    assert torch.equal(cut[2], whole[2][:4])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_output_frames_may_be_an_array_of_their_own(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = tiny()
    raw = arrays["input_raw_data"]
    clips = arrays["clips"].copy()
    clips[1, :, 0] = clips[1, ::-1, 0]
    save(tmp_path / "a.npz", **{**arrays, "clips": clips}, output_raw_data=raw[::-1])
    np.testing.assert_array_equal(mnist(tmp_path / "a.npz").clips[0][3:], np.moveaxis(raw[33:36], 1, -1))
    two = np.repeat(arrays["dims"], 2, axis=0)
    save(tmp_path / "b.npz", **{**arrays, "clips": clips, "dims": two}, output_raw_data=raw[::-1])
    clip = mnist(tmp_path / "b.npz").clips[0]
    np.testing.assert_array_equal(clip[:3], np.moveaxis(raw[:3], 1, -1))
    np.testing.assert_array_equal(clip[3:], np.moveaxis(raw[::-1][33:36], 1, -1))
    np.testing.assert_array_equal(clip[2:5], np.moveaxis(np.stack([raw[2], raw[2], raw[1]]), 1, -1))


def test_the_second_file_counts_its_own_frames(tmp_path: Path) -> None:
    """google/e3d_lstm adds the first file's number of clips to the starts, in a copy that it discards."""
    arrays = tiny()
    np.savez(tmp_path / "second.npz", **{**arrays, "input_raw_data": 1 - arrays["input_raw_data"]})
    both, first = mnist(f"{TINY},{tmp_path}/second.npz"), mnist(TINY)
    assert len(both.clips) == 12
    for number in range(6):
        np.testing.assert_array_equal(both.clips[number][:], first.clips[number][:])
        np.testing.assert_array_equal(both.clips[6 + number][:], 1 - first.clips[number][:])


RAW = read(TINY)[0]["input_raw_data"] if TINY.exists() else np.zeros((36, 1, 16, 16), np.float32)
PLACES = np.array([[[0, 3]], [[3, 3]]], np.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dims": None}, ClipError, "holds .*, but lacks dims of Moving MNIST as google/e3d_lstm reads it"),
        ({"clips": None, "input_raw_data": None}, ClipError, "but lacks clips, input_raw_data of Moving"),
        ({"clips": PLACES[0]}, ShapeError, r"\[clips\]: got \[1, 2\] int32, expected \[2, N, 2\] int32"),
        ({"clips": PLACES.astype(float)}, ShapeError, r"\[clips\]: got \[2, 1, 2\] float64"),
        ({"clips": PLACES[:, :0]}, ClipError, "has no clip"),
        ({"clips": PLACES + 32}, ClipError, "clip 0 has 35 frames from 32 on, but the file has 36"),
        ({"clips": PLACES - 4}, ClipError, "clip 0 has -1 frames from -4 on"),
        ({"clips": PLACES // 2}, ClipError, "has clips of 2 frames, but context and horizon are 6; make them shorter"),
        ({"dims": np.array([1, 16, 16])}, ShapeError, r"\[dims\]: got \[3\] int64, expected \[1, 3\] or \[2, 3\]"),
        ({"dims": np.array([[1, 16, 8]])}, ShapeError, r"frames \[1, 16, 16\], but dims says \[1, 16, 8\]"),
        ({"dims": np.array([[1, 16, 16]] * 2)}, ClipError, "two rows of dims but no output_raw_data"),
        ({"input_raw_data": RAW[0]}, ShapeError, r"got \[1, 16, 16\], expected \[frames, C, H, W\]"),
        ({"input_raw_data": RAW.astype(np.int32)}, ShapeError, "got int32, expected uint8, or float"),
    ],
)
def test_moving_mnist_files_that_contradict_themselves_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[E3DError], message: str
) -> None:
    arrays = {name: array for name, array in tiny(**changes).items() if array is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(error, match=message):
        mnist(tmp_path / "bad.npz")


def test_moving_mnist_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"frames \[16, 16, 1\], expected \[16, 24, 1\]"):
        mnist(TINY, image_size=SIZE)
    with pytest.raises(ClipError, match="has clips of 6 frames, but context and horizon are 7"):
        mnist(TINY, length=7)
    with pytest.raises(ClipError, match=r"absent\.npz: no such file; two files joined by a comma must both exist"):
        mnist(f"{TINY},absent.npz")


# mnist_test_seq.npy


def test_mnist_test_seq_has_its_clips_on_the_second_axis(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 7, *SIZE), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", array)
    source = source_of(tmp_path / "mnist_test_seq.npy", length=20, split="test")
    assert (source.kind, source.held_out, len(source.clips)) == ("mnist_test_seq", False, 7)
    assert fixed_windows(source, length=20).tolist() == [[number, 0] for number in range(7)]
    for number, clip in enumerate(source.clips):
        np.testing.assert_array_equal(clip[:], array[:, number, :, :, None])
        np.testing.assert_array_equal(clip[3:5], array[3:5, number, :, :, None])
    with pytest.raises(ShapeError, match=r"frames \[16, 24, 1\], expected \[64, 64, 1\]"):
        source_of(tmp_path / "mnist_test_seq.npy", image_size=(64, 64))
    with pytest.raises(ClipError, match="has clips of 20 frames, but context and horizon are 21"):
        source_of(tmp_path / "mnist_test_seq.npy", length=21)


# KTH

KTH = GOLDEN / "kth"


def kth(**changes: Any) -> Source:
    return source_of(KTH, **{"image_size": (16, 16), "length": 6, **changes})


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("split", ["train", "test"])
def test_kth_is_read_as_the_original_reads_it(split: str, length: int) -> None:
    recorded = read(GOLDEN / "kth_expected.npz")[0]
    source = kth(split=split, length=length)
    assert source.windows is not None
    clips, firsts = source.windows.T
    begins = np.cumsum([0, *map(len, source.clips)])
    assert (begins[clips] + firsts).tolist() == recorded[f"{split}/seq{length}/indices"].tolist()
    frames = np.concatenate([clip[:] for clip in source.clips])
    assert frames.dtype == np.float32
    assert np.abs(frames - recorded[f"{split}/frames"]).max() <= KTH_FRAMES
    windows = FixedWindows(source, length=length)
    assert len(windows) == recorded[f"{split}/seq{length}/handle_total"]
    count = original_batches(len(windows), 2)
    assert count == recorded[f"{split}/seq{length}/count"]
    for number in range(count):
        batch = torch.stack([windows[2 * number], windows[2 * number + 1]]).permute(0, 1, 3, 4, 2)
        difference = batch.numpy() - recorded[f"{split}/seq{length}/batch{number}"]
        assert np.abs(difference).max() <= KTH_FRAMES


def test_kth_validates_on_the_test_persons() -> None:
    train, valid, test = (kth(split=split) for split in SPLITS)
    assert first_pixels(valid) == first_pixels(test) != first_pixels(train)
    assert train.held_out
    assert valid.held_out


def test_a_long_stride_skips_the_end_of_the_clip_before() -> None:
    """The original searches all clips as one sequence."""
    windows = find_windows([[1, 2, 3], [1, 2, 3]], strides=[3, 3], length=2)
    assert windows.tolist() == [[1, 1], [0, 1]]
    assert find_windows([[1, 2, 3], [1, 2]], strides=[3, 3], length=2).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("size", [(3, 5), (15, 20), (40, 31), (1, 1)])
def test_resizing_keeps_a_ramp_straight(size: tuple[int, int]) -> None:
    """Pixel centres are at half pixels, clamped at the border."""
    H, W = size
    x = ((np.arange(W) + 0.5) * 20 / W - 0.5).clip(0, 19)
    y = ((np.arange(H) + 0.5) * 15 / H - 0.5).clip(0, 14)
    picture = (np.arange(20) + 30 * np.arange(15)[:, None]).astype(np.float32)
    np.testing.assert_allclose(resize_bilinear(picture, size), x + 30 * y[:, None], rtol=1e-5, atol=1e-4)


def kth_copy(tmp_path: Path) -> Path:
    for file in KTH.rglob("*"):
        if file.is_file():
            copy = tmp_path / "kth" / file.relative_to(KTH)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path / "kth"


def test_kth_without_a_category_or_a_person_is_refused(tmp_path: Path) -> None:
    folder = kth_copy(tmp_path)
    (folder / "jogging" / ".gitkeep").unlink()
    (folder / "jogging").rmdir()
    with pytest.raises(ClipError, match="lacks jogging of KTH's six folders"):
        source_of(folder)
    (folder / "jogging").mkdir()
    for person in folder.glob("*/person*"):
        if int(person.name[6:8]) > 16:
            person.rename(person.with_name("nobody" + person.name))
    assert len(source_of(folder).clips) == 5
    with pytest.raises(ClipError, match=r"has no person17_… to person25_…, which are the test split of KTH"):
        source_of(folder, split="test")
    with pytest.raises(ShapeError, match="KTH is read in gray, but the model takes 3 colours"):
        source_of(folder, channels=3)
    with pytest.raises(ClipError, match="no clip of KTH's train split has 100 frames without a gap"):
        source_of(folder, length=100)


def test_windows_over_a_broken_picture_of_kth_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = kth_copy(tmp_path)
    broken = folder / "running" / "person01_running_d1_uncomp" / "image_0025.png"
    broken.write_bytes(broken.read_bytes()[:50])
    windows = FixedWindows(source_of(folder), length=4)
    with pytest.raises(ClipError, match=r"image_0025\.png: not a picture"):
        [windows[index] for index in range(len(windows))]
    source = source_of(folder, skip_bad=True)
    assert source.skipped == (str(broken),)
    assert warnings_of(caplog)[-1] == f"{folder}: 1 files skipped because they cannot be read"
    fewer = FixedWindows(source, length=4)
    assert len([fewer[index] for index in range(len(fewer))]) < len(windows)
    broken.rename(broken.with_name("image.png"))
    with pytest.raises(ClipError, match=r"image\.png: expected a name such as image_0257\.png"):
        source_of(folder)


# Files and folders of clips, and their splits


@pytest.mark.parametrize("count", [3, 4, 10, 25, 1000])
def test_splits_are_disjoint_and_complete(count: int) -> None:
    parts = {split: members_of(split, count) for split in ("train", "valid", "test")}  # type: ignore[arg-type]
    assert sorted(number for part in parts.values() for number in part) == list(range(count))
    assert len(parts["valid"]) == len(parts["test"]) == max(1, round(count / 10))


def test_the_shuffle_of_the_splits_never_changes() -> None:
    assert members_of("test", 10) == [4]
    assert members_of("valid", 10) == [6]


def test_three_files_are_split_by_file(tmp_path: Path) -> None:
    for number in range(12):
        np.save(tmp_path / f"{number}.npy", np.full((5, *SIZE, 1), number, np.uint8))
    sources = [source_of(tmp_path, split=split) for split in SPLITS]
    assert [(len(source.clips), source.kind, source.held_out) for source in sources] == [
        (10, "array", True),
        (1, "array", True),
        (1, "array", True),
    ]
    assert sorted(int(pixels[0]) for source in sources for pixels in first_pixels(source)) == list(range(12))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_three_clips_of_an_array_are_split_by_clip(tmp_path: Path, suffix: str) -> None:
    clips, path = numbered(5, 4), tmp_path / f"clips{suffix}"
    np.savez(path, frames=clips) if suffix == ".npz" else np.save(path, clips)
    sources = [source_of(path, split=split) for split in SPLITS]
    assert [len(source.clips) for source in sources] == [3, 1, 1]
    assert all(source.held_out for source in sources)
    assert sorted(first_pixels(sources[0]) + first_pixels(sources[1]) + first_pixels(sources[2])) == [
        [10 * clip + t for t in range(4)] for clip in range(5)
    ]


def test_fewer_clips_are_split_by_time(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", numbered(2, 100)[:, :60])
    sources = [source_of(tmp_path / "clip.npy", split=split) for split in SPLITS]
    assert all(source.held_out for source in sources)
    first = [first_pixels(source)[0] for source in sources]
    assert first == [[*range(48)], [*range(48, 54)], [*range(54, 60)]]
    assert sources[1].clips[1][2:4][:, 0, 0, 0].tolist() == [60, 61]


def test_clips_too_short_to_divide_are_the_same_in_each_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "clip.npy", numbered(1, 35))
    sources = [source_of(tmp_path / "clip.npy", split=split) for split in SPLITS]
    assert [source.held_out for source in sources] == [False] * 3
    assert all(first_pixels(source) == [[*range(35)]] for source in sources)
    assert [message.split(": ")[1] for message in warnings_of(caplog)] == [
        f"too short to hold anything out, so {split} is measured on the training data" for split in ("valid", "test")
    ]
    assert by_time("test", [np.zeros((40, 1, 1, 1))], length=4) is not None


def test_folders_named_like_splits_are_the_splits(tmp_path: Path) -> None:
    for number, split in enumerate(SPLITS):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "clip.npy", numbered(3, 4) + 50 * number)
    for number, split in enumerate(SPLITS):
        source = source_of(tmp_path, split=split)
        assert source.held_out
        assert first_pixels(source)[2][0] == 20 + 50 * number
    (tmp_path / "valid" / "clip.npy").unlink()
    with pytest.raises(ClipError, match="valid: holds no videos, pictures or arrays"):
        source_of(tmp_path, split="valid")
    (tmp_path / "valid").rmdir()
    assert first_pixels(source_of(tmp_path, split="valid"))[0][0] == 100


def test_videos_are_decoded_once_to_the_models_size(tmp_path: Path) -> None:
    levels = list(range(0, 200, 20))
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", gray_levels((32, 48), [level + 10 * number for level in levels]))
    source = source_of(tmp_path)
    assert (source.kind, source.held_out, source.frames_per_second) == ("videos", True, (25.0, 25.0))
    for path in tmp_path.iterdir():
        path.unlink()  # the decoded frames remain
    trained = members_of("train", 4)
    for number, clip in zip(trained, source.clips, strict=True):
        assert len(clip) == 10
        window = clip[3:7]
        assert (window.shape, window.dtype) == ((4, *SIZE, 1), np.uint8)
        expected = np.array(levels[3:7]) + 10 * number
        assert np.abs(window[:, 5, 5, 0].astype(int) - expected).max() <= CODED


def test_each_folder_of_pictures_is_a_clip(tmp_path: Path) -> None:
    for number in range(3):
        write_folder(
            tmp_path / f"clip_{number}", {f"{t}.png": np.full(SIZE, 20 * number + t, np.uint8) for t in range(12)}
        )
    source = source_of(tmp_path)
    (number,) = members_of("train", 3)
    assert (source.kind, len(source.clips)) == ("pictures", 1)
    assert first_pixels(source) == [[20 * number + t for t in range(12)]]


def test_a_single_folder_of_pictures_is_one_clip(tmp_path: Path) -> None:
    write_folder(tmp_path / "walk", {f"{t}.png": np.full(SIZE, t, np.uint8) for t in range(40)})
    assert [first_pixels(source_of(tmp_path / "walk", split=split))[0][0] for split in SPLITS] == [0, 32, 36]


def test_clips_may_be_nested_and_next_to_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("nothing to see")
    np.save(tmp_path / "a" / "b" / "deep.npy", numbered(3, 4))
    assert len(source_of(tmp_path).clips) == 1
    assert warnings_of(caplog)[0] == f"{tmp_path}: skipped files and folders without clips: notes.txt"


def test_files_that_are_not_clips_are_remarked_once_for_all_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for day in ("0926", "0927"):
        (tmp_path / day).mkdir()
        write_folder(tmp_path / day / "image", {f"{t}.png": np.full(SIZE, t, np.uint8) for t in range(12)})
        (tmp_path / day / "times.txt").write_text("0.0")
    source_of(tmp_path)
    assert [text for text in warnings_of(caplog) if "without clips" in text] == [
        f"{tmp_path}: skipped files and folders without clips: {Path('0926', 'times.txt')}, {Path('0927', 'times.txt')}"
    ]


# Windows


def test_windows_of_a_source_are_consecutive(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", numbered(1, 35))
    windows = FixedWindows(source_of(tmp_path / "clip.npy"), length=4)
    assert len(windows) == 8
    assert [int(255 * windows[index][0, 0, 0, 0] + 0.5) for index in range(8)] == list(range(0, 32, 4))
    some = FixedWindows(source_of(tmp_path / "clip.npy"), length=4, most=3)
    assert [int(255 * some[index][0, 0, 0, 0] + 0.5) for index in range(3)] == [0, 8, 20]
    assert len(FixedWindows(source_of(tmp_path / "clip.npy"), length=4, most=100)) == 8


def test_a_shuffle_has_every_window_in_a_new_order_each_time() -> None:
    part = FixedWindows(mnist(TINY), length=6)
    data, again, other = Shuffled(part, seed=1), Shuffled(part, seed=1), Shuffled(part, seed=2)
    clips = [part[index] for index in range(6)]

    def order(shuffled: Shuffled, first: int) -> list[int]:
        samples = [shuffled[index] for index in range(first, first + 6)]
        return [next(number for number, clip in enumerate(clips) if torch.equal(sample, clip)) for sample in samples]

    assert sorted(order(data, 0)) == sorted(order(data, 6)) == list(range(6))
    assert order(data, 6) != order(data, 0) == order(again, 0)
    assert [order(other, 0), order(other, 6)] != [order(data, 0), order(data, 6)]


def training(data: list[tuple[str, float]], **changes: Any) -> Any:
    options = {"image_size": (16, 16), "channels": 1, "length": 6, "seed": 0}
    return training_data(data, **with_form(**{**options, **changes}))


def test_training_data_are_of_the_train_split_and_mixed(tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", numbered(10, 8, size=(16, 16)))
    clips, mixed = (str(tmp_path / "clips.npy"), 1.0), training([(str(TINY), 1.0), (str(tmp_path / "clips.npy"), 3.0)])
    assert isinstance(training([clips]), Windows)
    assert len(training([clips]).clips) == 8
    assert isinstance(mixed, Mixture)
    assert [type(part) for part in mixed.parts] == [Shuffled, Windows]
    assert mixed.shares.tolist() == [0.25, 0.75]
    assert {sample.shape for sample in map(mixed.__getitem__, range(20))} == {(6, 1, 16, 16)}
    assert training([("moving-mnist", 1.0)], image_size=(32, 32))[0].shape == (6, 1, 32, 32)


def evaluation(text: Path | str, **changes: Any) -> Any:
    options = {"split": "test", "image_size": (16, 16), "channels": 1, "length": 6, "most": None}
    return evaluation_data(str(text), **with_form(**{**options, **changes}))


def test_evaluation_data_are_finite(tmp_path: Path) -> None:
    assert len(evaluation(TINY)) == 6
    assert len(evaluation(TINY, most=2)) == 2
    assert len(evaluation("moving-mnist", image_size=(32, 32))) == 1000
    test, valid = (evaluation("moving-mnist", image_size=(32, 32), most=3, split=split) for split in ("test", "valid"))
    assert len(test) == 3
    assert torch.equal(test[1], evaluation("moving-mnist", image_size=(32, 32), most=3)[1])
    assert not torch.equal(test[1], valid[1])


def test_options_that_cannot_work_are_refused() -> None:
    for share in (0.0, -1.0):
        with pytest.raises(ConfigError, match=f"moving-mnist has the share {share:g}, expected more than 0"):
            training([("moving-mnist", share)])
    with pytest.raises(ConfigError, match="Moving MNIST is gray, the model takes 3 colours"):
        training([("moving-mnist", 1.0)], channels=3)
    with pytest.raises(ConfigError, match="Moving MNIST is gray, the model takes 3 colours"):
        evaluation("moving-mnist", channels=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, np.nan], r"clips\.npy, clip 0, frames 0 to \d: holds NaN or infinity"),
        ([0, 200], r"clips\.npy, clip 0, frames 0 to \d: .* out of range, values from 0 to 200, expected \[0, 1\]"),
        ([-0.5, 0], "values from -0.5 to 0, expected"),
    ],
)
def test_floats_out_of_range_are_refused_before_anything_is_learned(
    tmp_path: Path, values: list[float], message: str
) -> None:
    clip = np.resize(np.array(values, np.float32), (6, 16, 16, 1))
    np.save(tmp_path / "clips.npy", clip)
    with pytest.raises(ShapeError, match=message):
        training([(str(tmp_path / "clips.npy"), 1.0)])
    with pytest.raises(ShapeError, match=message):
        evaluation(tmp_path / "clips.npy")


@pytest.mark.parametrize("kind", [">f4", np.float64, np.float16])
def test_floats_of_any_kind_become_float32(tmp_path: Path, kind: Any) -> None:
    clip = np.linspace(0, 1, 6 * 16 * 16).reshape(6, 16, 16, 1).astype(kind)
    np.save(tmp_path / "clips.npy", clip)
    window = mnist(tmp_path / "clips.npy").clips[0][:]
    assert window.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(window, clip.astype(np.float32))
    assert evaluation(tmp_path / "clips.npy")[0].dtype == torch.float32


# Bad input


def spoil(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def test_short_clips_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for length in (3, 4, 5):
        np.save(tmp_path / "train" / f"{length}.npy", numbered(1, length))
    source = source_of(tmp_path)
    assert [len(clip) for clip in source.clips] == [4, 5]
    assert source.short == (f"{tmp_path}/train/3.npy, clip 0",)
    assert "1 of 3 clips have fewer than 4 frames and are skipped" in warnings_of(caplog)[0]
    message = "no clip has 6 frames, the longest of 3 in the train split has 5; give longer clips"
    with pytest.raises(ClipError, match=message):
        source_of(tmp_path, length=6)


def test_bad_files_are_named_and_skipped_only_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", gray_levels(SIZE, range(10 * number, 10 * number + 10)))
    bad, *_ = members_of("train", 4)
    spoil(tmp_path / f"{bad}.mp4")
    with pytest.raises(ClipError, match=rf"{bad}\.mp4: not a video that can be read"):
        source_of(tmp_path)
    source = source_of(tmp_path, skip_bad=True)
    assert source.skipped == (f"{tmp_path}/{bad}.mp4",)
    assert [round(pixels[0] / 10) for pixels in first_pixels(source)] == members_of("train", 4)[1:]
    assert sum(f"skipped: {tmp_path}/{bad}.mp4: not a video" in message for message in warnings_of(caplog)) == 1
    assert f"{tmp_path}: 1 files skipped because they cannot be read" in warnings_of(caplog)


def test_no_window_spans_a_skipped_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "walk", {f"{t}.png": np.full(SIZE, t, np.uint8) for t in range(20)})
    spoil(folder / "6.png")
    source = source_of(folder, skip_bad=True)
    assert first_pixels(source) == [[*range(6)], [*range(7, 20)]]
    assert source.skipped == (f"{folder}/6.png",)
    assert sum("6.png" in message for message in warnings_of(caplog)) == 1
    with pytest.raises(ClipError, match=r"6\.png: not a picture"):
        source_of(folder).clips[0][:]


def test_skipping_every_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(ClipError, match="no file of the train split can be read, all 1 were skipped"):
        source_of(tmp_path, skip_bad=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path.mkdir(), ClipError, "holds no videos, pictures or arrays"),
        (lambda path: (path / "empty").mkdir(parents=True), ClipError, "thing: holds no videos, pictures or arrays"),
        (lambda path: path.write_text("to be or not to be " * 50), ClipError, "thing: not a video that can be read"),
        (lambda path: path.write_bytes(b"\0" * 500), ClipError, "not a video that can be read"),
        (lambda path: None, ClipError, "no such file or folder; give .npz, .npy, a video, or a folder"),
    ],
)
def test_sources_without_clips_are_refused(
    tmp_path: Path, make: Callable[[Path], Any], error: type[E3DError], message: str
) -> None:
    make(tmp_path / "thing")
    with pytest.raises(error, match=message):
        source_of(tmp_path / "thing")


def test_pictures_next_to_clips_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "walk", {"cover.png": np.zeros(SIZE, np.uint8)})
    np.save(tmp_path / "walk" / "clip.npy", numbered(1, 40))
    with pytest.raises(ClipError, match=r"holds pictures \(cover\.png\) and clip\.npy; give each its own folder"):
        source_of(tmp_path / "walk")
    (tmp_path / "walk" / "clip.npy").unlink()
    with pytest.raises(ShapeError, match="pictures have 1 or 3 colours, the model takes 2"):
        source_of(tmp_path / "walk", channels=2)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((4, *SIZE[::-1])), ShapeError, r"got \[4, 24, 16\], expected \[B, T, H, W, C\] or \[T, H, W, C\]"),
        (np.zeros((4, *SIZE, 3), np.uint8), ShapeError, r"frames \[16, 24, 3\], expected \[16, 24, 1\]"),
        (np.zeros((4, *SIZE, 1), np.int64), ShapeError, "got int64, expected uint8, or float in"),
        (np.zeros((0, 4, *SIZE, 1), np.uint8), ClipError, r"holds no frame, its shape is \[0, 4, 16, 24, 1\]"),
        (np.zeros((2, 4, *SIZE, 1), np.uint8, order="F"), ClipError, "is stored column by column; write np.asconti"),
        (np.array([{}]), ClipError, "contains objects, such as clips of several lengths; write each clip to a .npy"),
        (np.zeros((4, *SIZE, 2), np.uint8), ShapeError, r"frames \[16, 24, 2\], expected \[16, 24, 1\]"),
        (np.zeros((4, *SIZE, 1), np.complex64), ShapeError, "got complex64, expected uint8, or float"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_in_unsupported_forms_are_refused(
    tmp_path: Path, array: NDArray[Any], error: type[E3DError], message: str, suffix: str
) -> None:
    path = tmp_path / f"clips{suffix}"
    np.savez_compressed(path, frames=array) if suffix == ".npz" else np.save(path, array)
    with pytest.raises(error, match=message):
        source_of(path)


def test_a_second_array_in_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        for _ in range(2):
            np.save(file, numbered(1, 4))
    with pytest.raises(
        ClipError, match=r"a\.npy: has 1664 bytes after its array; if they are a second array, write it"
    ):
        source_of(tmp_path / "a.npy")


def test_an_npz_without_frames_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", images=np.zeros(3))
    with pytest.raises(ClipError, match=r"holds images \[3\], expected an array of 3 to 5 axes; write"):
        source_of(tmp_path / "digits.npz")


@pytest.mark.parametrize("name", ["arr_0", "clips", "data"])
def test_the_only_array_of_an_npz_with_axes_of_clips_is_read(tmp_path: Path, name: str) -> None:
    clips = numbered(3, 4)
    np.savez(tmp_path / "a.npz", **{name: clips, "labels": np.arange(3), "names": np.array(["a"] * 3)})
    source = source_of(tmp_path / "a.npz", length=4)
    np.testing.assert_array_equal(source.clips[0][:], clips[members_of("train", 3)[0]])
    expected = (
        f"{tmp_path}/a.npz: read its array {name}, the only one that fits; the file has {name} [3, 4, 16, 24, 1], "
        "labels [3], names [3]"
    )
    assert source.remarks[0] == expected


def test_several_arrays_of_frames_in_an_npz_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = numbered(3, 4)
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x_train=clips, x_test=clips[:1], y_train=np.arange(3))
    with pytest.raises(
        ClipError, match=r"x_train \[3, .*, y_train \[3\], expected one array of frames; write"
    ) as error:
        source_of(Path("a.npz"))
    exec(str(error.value).split("its own: ")[1], {"np": np})
    assert len(source_of(Path("x_train.npy"), length=4).clips) == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_checksum_of_an_array_is_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None]
) -> None:
    path = tmp_path / "a.npz"
    save(path, frames=np.random.default_rng(0).integers(0, 256, (1, 4, *SIZE, 1), np.uint8))
    unpacked: list[str] = []
    monkeypatch.setattr(
        "e3d_deploy.data.arrays._unpacked",
        lambda path, entry, progress, of=arrays._unpacked: (
            unpacked.append(entry.filename),
            of(path, entry, progress),
        )[1],
    )
    read_clips(path, Form(image_size=SIZE, channels=1))
    assert unpacked == ["frames.npy"]
    for split in ("train", "valid"):
        open_source(str(path), Form(image_size=SIZE, channels=1), split=split, length=1)
    assert len(unpacked) == (1 if save is np.savez else 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes(20) + whole[620:])
    os.utime(path, ns=(0, 0))
    with pytest.raises(ClipError, match="not a NumPy file of plain numbers, or damaged"):
        read_clips(path, Form(image_size=SIZE, channels=1))


def test_reading_a_large_array_reports_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e3d_deploy.data.arrays.CHUNK_BYTES", 64)
    monkeypatch.setattr("e3d_deploy.data.arrays.PROGRESS_BYTES", 128)
    path = tmp_path / "a.npz"
    np.savez(path, frames=np.zeros((2, 4, *SIZE, 1), np.uint8))
    told: list[str] = []
    read_clips(path, Form(image_size=SIZE, channels=1), progress=told.append)
    assert any(text.startswith(f"reading {path}, ") and text.endswith(" %") for text in told)


@pytest.mark.parametrize("name", ["plain.npz", "packed.npz", "plain.npy"])
def test_damaged_arrays_are_refused(tmp_path: Path, name: str) -> None:
    clips, path = np.random.default_rng(0).integers(0, 256, (2, 40, *SIZE, 1), np.uint8), tmp_path / name
    if name == "plain.npy":
        np.save(path, clips)
    else:
        (np.savez if name == "plain.npz" else np.savez_compressed)(path, frames=clips)
    whole = path.read_bytes()
    spoil(path, 0.9)
    with pytest.raises(ClipError, match=f"{name}: not a NumPy file of plain numbers, or damaged"):
        source_of(path)
    if name.endswith(".npz"):
        path.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
        with pytest.raises(ClipError, match=f"{name}: not a NumPy file of plain numbers, or damaged"):
            source_of(path)
    path.write_bytes(whole)
    source = source_of(path)
    if name == "plain.npy":
        spoil(path)
        with pytest.raises(ClipError, match=r"plain\.npy, clip 1: its file has become shorter since it was opened"):
            source.clips[1][:]


# Memory, disk and processes


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


GROWTH = """
import re, sys
from pathlib import Path
import numpy as np
from e3d_deploy.data.form import Form
from e3d_deploy.data.sources import open_source

def peak():  # not ru_maxrss, which begins at what the parent process had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

options = dict(split="train", form=Form(image_size=(64, 64), channels=1), length=20)
open_source(sys.argv[1] + "/small.npz", **options).clips[0][:20]
before = peak()
source = open_source(sys.argv[1] + "/" + sys.argv[2], **options)
opened = peak()
rng = np.random.default_rng(0)
for _ in range(1000):
    clip = source.clips[rng.integers(len(source.clips))]
    first = rng.integers(len(clip) - 19)
    assert clip[first : first + 20].shape == (20, 64, 64, 1)
print(opened - before, peak() - before)
"""


def growth_mb(folder: Path, name: str) -> tuple[float, float]:
    """Return how much opening a file and reading 1,000 windows of it raise the peak of memory, each (MB)."""
    np.savez_compressed(folder / "small.npz", frames=np.zeros((1, 40, 64, 64, 1), np.uint8))
    done = python(f"import sys; sys.argv[1:] = [{str(folder)!r}, {name!r}]" + GROWTH, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    opened, read_ = done.stdout.split()
    return float(opened), float(read_)


def write_header(file: Any, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return int(np.prod(shape))


def test_arrays_larger_than_memory_are_read_by_window(tmp_path: Path) -> None:
    with (tmp_path / "large.npy").open("wb") as file:
        size = write_header(file, (3, 25_000, 64, 64, 1))
        file.truncate(file.tell() + size)  # 300 MB as a sparse file, which takes no disk
    _, grown = growth_mb(tmp_path, "large.npy")
    assert grown < READING_MB


def test_compressed_arrays_are_unpacked_to_disk_and_leave_nothing(tmp_path: Path) -> None:
    chunk = bytes(1 << 20)
    with (
        zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("frames.npy", "w", force_zip64=True) as member,
    ):
        size = write_header(member, (1, 200 << 8, 64, 64, 1))
        for _ in range(size // len(chunk)):
            member.write(chunk)
    opened, grown = growth_mb(tmp_path, "large.npz")
    assert opened < UNPACKING_MB
    assert grown < UNPACKING_MB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.npz", "small.npz"]


def test_a_full_disk_names_the_variable_that_chooses_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    scratch = Scratch()
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="0 MB of decoded clips; set TMPDIR to a larger disk"):
        scratch.append(b"x")


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file replaces a full disk; its error has a remedy of its own."""
    (tmp_path / "tmp").mkdir()
    np.savez_compressed(tmp_path / "clips.npz", frames=numbered(3, 4, size=(64, 64)))
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    command = f"sys.argv[1:] = ['data', 'inspect', {str(tmp_path / 'clips.npz')!r}, '--length', '4'];"
    done = python(f"{limit}{command} from e3d_deploy.cli import main; main()", TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 7
    assert done.stderr.splitlines()[-1].startswith(f"Error: {tmp_path}/tmp: File too large after 0 MB of decoded clips")
    assert "; raise the limit on file sizes (`ulimit -f`)" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def _sum_of(clip: Any, answers: Any) -> None:
    answers.put(int(clip[1:3].sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_unpacked_arrays_reach_worker_processes(tmp_path: Path, method: str) -> None:
    np.savez_compressed(tmp_path / "clips.npz", frames=numbered(3, 4))
    clip = source_of(tmp_path / "clips.npz").clips[0]
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    worker = context.Process(target=_sum_of, args=(clip, answers))
    worker.start()
    assert answers.get(timeout=60) == clip[1:3].sum()
    worker.join()


def test_sources_need_no_pytorch() -> None:
    code = f"""
import sys
for name in ("torch", "click", "av", "matplotlib"):
    sys.modules[name] = None
from e3d_deploy.data.form import Form
from e3d_deploy.data.inspect import open_splits
options = dict(form=Form(image_size=(16, 16), channels=1), length=6, skip_bad=False, progress=print)
opened = open_splits({str(KTH)!r}, split="train", **options)
print(opened["train"].clips[0][:2].shape)
"""
    assert python(code).stdout.splitlines()[-1] == "(2, 16, 16, 1)"


# e3d data inspect


def inspect(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["data", "inspect", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_inspect_shows_frames_as_they_are_fitted(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("L", (48, 16), 200).save(tmp_path / f"{number}.png")
    arguments = [tmp_path, "--image-size", "16x16", "--length", 10, "--json"]
    least = {}
    for fit in ("stretch", "crop", "pad"):
        result = inspect(*arguments, "--fit", fit)
        least[fit] = json.loads(result.stdout)["values"]["min"]
        assert (f"--fit {fit}" in result.stderr.splitlines()[-1]) == (fit != "stretch")
    assert least["pad"] == 0
    assert least["stretch"] == least["crop"] == pytest.approx(200 / 255, abs=0.01)


def test_inspect_says_why_nothing_is_held_out(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", numbered(1, 35))
    result = inspect(tmp_path / "clip.npy", "--image-size", "16x24", "--length", 20, "--json")
    remarks = json.loads(result.stdout)["remarks"]
    for split in ("valid", "test"):
        assert any(
            f"too short to hold anything out, so {split} is measured on the training data" in one for one in remarks
        )


@pytest.mark.parametrize("bad", ["train", "valid"])
def test_inspect_suggests_no_training_that_cannot_begin(tmp_path: Path, bad: str) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        right = bad[:3] != split[:3]
        np.save(tmp_path / split / "clip.npy", numbered(1, 35) if right else np.zeros((1, 35, 8, 8, 1), np.uint8))
    other = "valid" if bad == "train" else "train"
    size = ("--image-size", "16x24", "--length", 20)
    result = inspect(tmp_path, *size, "--split", other, "--json")
    assert "error" in json.loads(result.stdout)["splits"][bad]
    assert f"training is not possible: the {bad} split has the error above; repair its data" in result.stderr
    assert "next: e3d train" not in result.stderr


def test_inspect_describes_the_data_as_json(tmp_path: Path) -> None:
    (clips := tmp_path / "clips").mkdir()
    for number in range(10):
        write_video(clips / f"{number}.mp4", gray_levels(SIZE, range(100, 100 + 5 * (number + 1))))
    arguments = [clips, "--image-size", "16x24", "--length", 10, "--picture", tmp_path / "sheet.png"]
    found = json.loads(inspect(*arguments, "--json").stdout)
    assert found["kind"] == "videos"
    assert found["frames_per_second"] == [25]
    assert found["frame"] == {"height": 16, "width": 24, "channels": 1, "dtype": "uint8"}
    assert 95 / 255 < found["values"]["min"] < found["values"]["mean"] < found["values"]["max"] < 155 / 255
    lengths = [5 * (number + 1) for number in members_of("train", 10)]
    assert found["splits"]["train"] == {
        "clips": len([length for length in lengths if length >= 10]),
        "windows": sum(length // 10 for length in lengths),
        "held_out": True,
        "lengths": {
            "min": min(length for length in lengths if length >= 10),
            "median": np.median([length for length in lengths if length >= 10]),
            "max": max(lengths),
        },
        "skipped": [],
        "folders": [],
        "short": [f"{clips}/{number}.mp4" for number in members_of("train", 10) if number == 0],
    }
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > image.height > 100


def test_inspect_describes_the_data_as_tables(tmp_path: Path) -> None:
    for number in range(3):
        write_folder(tmp_path / f"{number}", {f"{t}.png": np.full(SIZE, t, np.uint8) for t in range(4)})
    train, valid = (*members_of("train", 3), *members_of("valid", 3))
    spoil(tmp_path / f"{train}" / "0.png")
    (tmp_path / f"{valid}" / "3.png").unlink()
    result = inspect(tmp_path, "--image-size", "16x24", "--length", 3, "--skip-bad")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["kind", "pictures"] in lines
    assert ["train", "1", "1", "3", "3", "3", "yes", "1", "0"] in lines
    assert ["valid", "1", "1", "3", "3", "3", "yes", "0", "0"] in lines
    assert ["train,", "skipped:", f"{tmp_path}/{train}/0.png"] in lines
    next_ = f"next: e3d train --data {tmp_path} --image-size 16x24 --channels 1 -o runs/first"
    assert result.stderr.splitlines()[-1].startswith(next_)
    short = inspect(tmp_path, "--image-size", "16x24", "--length", 4, "--skip-bad", "--split", "test").stdout
    assert "train: " in short
    assert "no clip has 4 frames" in short


def test_inspect_writes_nothing_unasked_and_fails_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inspect(KTH, "--image-size", "16x16", "--length", 6)
    inspect(TINY, "--image-size", "16x16", "--length", 6)
    assert list(tmp_path.iterdir()) == []
    assert "got (16,), expected height and width" in inspect(TINY, "--image-size", "16", code=2).stderr
    assert "no such file or folder" in inspect("absent", code=2).stderr
    np.save("colours.npy", np.zeros((3, 4, *SIZE, 2), np.uint8))
    colours = ["colours.npy", "--image-size", "16x24", "--channels", 2, "--length", 4, "--picture", "sheet.png"]
    assert "frames have 2 colours, only 1 or 3 can be drawn; omit --picture" in inspect(*colours, code=2).stderr
    assert not Path("sheet.png").exists()
