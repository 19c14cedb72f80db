"""Moving MNIST, clips from files, and the data sets made of them."""

import logging
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from e3d_deploy.data.clips import play, read_clips
from e3d_deploy.data.datasets import Extendable, Mixture, MovingMNIST, Windows
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import DIGIT_SIDE, SPLITS, load_digits, moving_mnist
from e3d_deploy.errors import ClipError, ConfigError, ShapeError, SourceLost
from tests.tools import with_form

SIZE = (32, 48)
"""Height and width of the clips in these files (pixels)."""
ROUNDED_PLACES = 1.5  # pixels; up to √2, as both axes are rounded down; measured 0.80
ROUNDED_TWICE = 1  # gray level; Pillow averages rows, then columns, measured 1
CODED = 6  # gray levels between a picture and its video; measured 2, but swscale rounds differently on other CPUs

# Moving MNIST

SQUARE = np.full((1, DIGIT_SIDE, DIGIT_SIDE), 255, np.uint8)
"""One digit, a white square, whose position can be read from a frame."""


def digits_clip(seed: int, **changes: Any) -> NDArray[np.uint8]:
    return moving_mnist(load_digits("test"), np.random.default_rng(seed), **{"length": 5, **changes})


def corners(seed: int, *, length: int, side: int) -> NDArray[np.int64]:
    """Return the top and left of the only moving square in each frame, [T, 2] (pixels)."""
    clip = moving_mnist(SQUARE, np.random.default_rng(seed), length=length, image_size=(side, side), count=1)
    return np.array([np.argwhere(frame[..., 0]).min(axis=0) for frame in clip])


def test_the_seed_determines_moving_mnist() -> None:
    np.testing.assert_array_equal(digits_clip(seed=1), digits_clip(seed=1))
    assert (digits_clip(seed=1) != digits_clip(seed=2)).any()


@pytest.mark.parametrize("length", [1, 20, 33])
@pytest.mark.parametrize("image_size", [(64, 64), (28, 28), (32, 90)])
def test_moving_mnist_comes_in_any_size_and_length(length: int, image_size: tuple[int, int]) -> None:
    clip = digits_clip(seed=0, length=length, image_size=image_size)
    assert clip.shape == (length, *image_size, 1)
    assert clip.dtype == np.uint8
    assert (clip.max(axis=(1, 2, 3)) > 200).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_moving_mnist_draws_the_given_number_of_digits(count: int) -> None:
    """The canvas is so large that no two digits touch with this seed."""
    dots = np.zeros((1, DIGIT_SIDE, DIGIT_SIDE), np.uint8)
    dots[0, 14, 14] = 255
    clip = moving_mnist(dots, np.random.default_rng(0), length=4, image_size=(400, 400), count=count)
    assert (clip > 0).sum(axis=(1, 2, 3)).tolist() == [count] * 4


def test_overlapping_digits_keep_the_brighter_pixel() -> None:
    clip = moving_mnist(SQUARE // 2, np.random.default_rng(0), length=3, image_size=(30, 30), count=4)
    assert set(np.unique(clip)) == {0, 127}


@pytest.mark.parametrize("seed", range(5))
def test_digits_stay_inside(seed: int) -> None:
    clip = moving_mnist(SQUARE, np.random.default_rng(seed), length=60, image_size=(40, 50), count=1)
    assert ((clip > 0).sum(axis=(1, 2, 3)) == DIGIT_SIDE**2).all()


@pytest.mark.parametrize("seed", range(5))
def test_digits_move_in_straight_lines_between_bounces(seed: int) -> None:
    side = 528
    places = corners(seed, length=40, side=side)
    for axis in range(2):
        place = places[:, axis]
        inside = (place > 0) & (place < side - DIGIT_SIDE)
        bend = np.diff(place, n=2)[inside[:-2] & inside[1:-1] & inside[2:]]
        assert len(bend) > 10
        assert np.abs(bend).max() <= 1  # positions are rounded down to pixels


@pytest.mark.parametrize("seed", range(5))
def test_digits_bounce_off_the_border(seed: int) -> None:
    side = 128
    places = corners(seed, length=60, side=side)
    bounces = 0
    for axis in range(2):
        place = places[:, axis]
        for t in range(1, len(place) - 1):
            if place[t] in (0, side - DIGIT_SIDE):
                before, after = place[t] - place[t - 1], place[t + 1] - place[t]
                assert before * after <= 0
                bounces += 1
    assert bounces > 2


@pytest.mark.parametrize("seed", range(5))
def test_digits_move_a_tenth_of_the_free_way_in_a_frame(seed: int) -> None:
    """This is the speed of the published data set; each of two positions is rounded down by up to a pixel."""
    free = 500
    places = corners(seed, length=40, side=free + DIGIT_SIDE)
    inside = ((places > 0) & (places < free)).all(axis=1)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)[inside[:-1] & inside[1:]]
    assert len(steps) > 10
    assert np.abs(steps - 0.1 * free).max() < ROUNDED_PLACES


def test_splits_share_no_digit() -> None:
    taken = [set(range(6000)[split]) for split in SPLITS.values()]
    assert [len(numbers) for numbers in taken] == [4500, 500, 1000]
    assert len(set.union(*taken)) == 6000
    assert [len(load_digits(split)) for split in ("train", "valid", "test")] == [4500, 500, 1000]


def test_digits_are_white_on_black() -> None:
    digits = load_digits("valid")
    assert digits.shape[1:] == (DIGIT_SIDE, DIGIT_SIDE)
    assert digits.dtype == np.uint8
    assert not digits[:, 0].any()
    assert digits.max() == 255


@pytest.mark.parametrize("image_size", [(27, 64), (64, 27)])
def test_frames_smaller_than_a_digit_are_refused(image_size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"image_size: .*27.* is too small for digits of 28 pixels"):
        digits_clip(seed=0, image_size=image_size)


# Clips from files


def gray_clips(*lead: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*lead, *SIZE, 1), dtype=np.uint8)


def read(path: Path, **changes: Any) -> NDArray[Any]:
    return read_clips(path, **with_form(**{"image_size": SIZE, "channels": 1, **changes})).frames


@pytest.mark.parametrize("lead", [(2, 5), (5,)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_are_read_unchanged(tmp_path: Path, lead: tuple[int, ...], kind: type, suffix: str) -> None:
    clips = gray_clips(*lead) if kind is np.uint8 else gray_clips(*lead).astype(np.float32) / 255
    path = tmp_path / f"clips{suffix}"
    if suffix == ".npz":
        np.savez(path, frames=clips, other=np.zeros(3))
    else:
        np.save(path, clips)
    frames = read(path)
    assert frames.dtype == kind
    np.testing.assert_array_equal(frames, clips.reshape(-1, 5, *SIZE, 1))
    np.testing.assert_array_equal(read(path, most=3), frames[:, :3])


def write_folder(folder: Path, pictures: dict[str, NDArray[np.uint8]]) -> Path:
    """Write pictures [H, W] or [H, W, 3] to files of the given names."""
    folder.mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    return folder


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    names = ["frame_10.png", "frame_2.png", "frame_1.png", "frame_100.png"]
    folder = write_folder(tmp_path / "walk", {name: np.full(SIZE, 100 - k, np.uint8) for k, name in enumerate(names)})
    (folder / "notes.txt").write_text("not a picture, and skipped")
    frames = read(folder)
    assert frames.shape == (1, 4, *SIZE, 1)
    assert frames.dtype == np.uint8
    assert frames[0, :, 0, 0, 0].tolist() == [98, 99, 100, 97]
    assert read(folder, most=2)[0, :, 0, 0, 0].tolist() == [98, 99]


def test_folder_keeps_its_colours(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    folder = write_folder(tmp_path / "walk", {"1.png": picture})
    np.testing.assert_array_equal(read(folder, channels=3)[0, 0], picture)


def test_pictures_are_scaled_by_averaging(tmp_path: Path) -> None:
    H, W = SIZE
    large = np.random.default_rng(0).integers(0, 256, (2 * H, 2 * W), dtype=np.uint8)
    folder = write_folder(tmp_path / "walk", {"1.png": large})
    expected = large.reshape(H, 2, W, 2).mean(axis=(1, 3))
    assert np.abs(read(folder)[0, 0, :, :, 0] - expected).max() <= ROUNDED_TWICE


def gray_levels(size: tuple[int, int], levels: Sequence[int]) -> NDArray[np.uint8]:
    """Return pictures [T, H, W], each of a single gray level."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None], (len(levels), *size))


def write_video(path: Path, pictures: NDArray[np.uint8], *, rate: int = 25) -> Path:
    """Write gray pictures [T, H, W] as a colour video of `rate` frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.height, stream.width = pictures.shape[1:]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, axis=-1), "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [SIZE, (64, 64)])
def test_video_is_read_at_the_size_of_the_model(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    levels = list(range(0, 240, 20))
    path = write_video(tmp_path / "walk.mp4", gray_levels(size, levels))
    clips = read_clips(path, Form(image_size=SIZE, channels=channels))
    assert clips.frames.shape == (1, len(levels), *SIZE, channels)
    assert clips.frames.dtype == np.uint8
    assert clips.frames_per_second == 25
    assert np.abs(clips.frames[0].astype(int) - np.array(levels)[:, None, None, None]).max() <= CODED
    assert read(path, most=5).shape[1] == 5


def test_videos_are_scaled_by_averaging(tmp_path: Path) -> None:
    H, W = SIZE
    large = np.random.default_rng(0).integers(0, 256, (3, 2 * H, 2 * W), dtype=np.uint8)
    expected = large.reshape(3, H, 2, W, 2).mean(axis=(2, 4))
    frames = read(write_video(tmp_path / "walk.mp4", large))
    assert np.abs(frames[0, ..., 0] - expected).max() <= CODED


def test_pedestrians_ship_with_the_package() -> None:
    clips = read_clips(
        Path(str(files("e3d_deploy.data") / "clips" / "pedestrians.mp4")), Form(image_size=(64, 64), channels=1)
    )
    assert clips.frames.shape == (1, 150, 64, 64, 1)
    assert clips.frames.dtype == np.uint8
    assert clips.frames_per_second == 10
    assert (np.diff(clips.frames[0], axis=0) != 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (
            "absent.npz",
            None,
            "absent.npz: no such file or folder; give .npz, .npy, a video, or a folder of pictures or clips",
        ),
        (
            "other.npz",
            {"dims": gray_clips(2)},
            r"other.npz: holds \['dims'\], but lacks clips, input_raw_data of Moving MNIST",
        ),
        ("empty.npz", {"frames": gray_clips(0)}, r"empty.npz\[frames\]: holds no frame, its shape is \[0, 32, 48, 1\]"),
        (
            "none.npz",
            {"frames": gray_clips(0, 5)},
            r"none.npz\[frames\]: holds no frame, its shape is \[0, 5, 32",
        ),
        ("objects.npz", {"frames": np.array([{}])}, r"objects.npz\[frames\]: contains objects, such as clips"),
    ],
)
def test_npz_without_a_clip_is_refused(
    tmp_path: Path, name: str, arrays: dict[str, NDArray[Any]] | None, message: str
) -> None:
    if arrays is not None:
        np.savez(tmp_path / name, **arrays)
    with pytest.raises(ClipError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (5, 32, 32, 1),
            r"frames \[32, 32, 1\], expected \[32, 48, 1\]; resize them, or use .* --image-size 32x32 --channels 1 ",
        ),
        ((5, 48, 32, 1), r"frames \[48, 32, 1\], expected \[32, 48, 1\]"),
        ((2, 5, 32, 48, 3), r"frames \[32, 48, 3\], expected \[32, 48, 1\]"),
        ((32, 48, 1), r"got \[32, 48, 1\], expected \[B, T, H, W, C\] or \[T, H, W, C\].*; reshape it"),
        ((1, 1, 5, 32, 48, 1), r"got \[1, 1, 5, 32, 48, 1\], expected \[B, T, H, W, C\].*; reshape it"),
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    np.save(tmp_path / "clips.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ShapeError, match=rf"clips\.npy: {message}"):
        read(tmp_path / "clips.npy")


@pytest.mark.parametrize("name", ["text.npz", "text.npy"])
@pytest.mark.parametrize("content", [b"", b"To be or not to be, that is the question."])
def test_files_that_are_not_numpy_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=f"{name}: not a NumPy file"):
        read(tmp_path / name)


def test_truncated_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clips.npy"
    np.save(path, gray_clips(5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ClipError, match=r"clips\.npy: not a NumPy file"):
        read(path)


def test_an_array_with_an_invalid_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clips.npy"
    np.save(path, gray_clips(5))
    path.write_bytes(path.read_bytes().replace(b"), }", b" , }"))
    with pytest.raises(ClipError, match=r"clips\.npy: not a NumPy file"):
        read(path)


def test_damaged_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clips.npz"
    np.savez(path, frames=gray_clips(5))
    content = bytearray(path.read_bytes())
    content[3000:3100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ClipError, match=r"clips\.npz: not a NumPy file of plain numbers, or damaged"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"To be or not to be, that is the question." * 9])
def test_text_named_as_video_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.mp4").write_bytes(content)
    with pytest.raises(ClipError, match=r"text\.mp4: not a video that can be read"):
        read(tmp_path / "text.mp4")


def test_truncated_video_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "walk.mp4", gray_levels(SIZE, range(20)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ClipError, match=r"walk\.mp4: not a video that can be read"):
        read(path)


def test_a_file_with_only_sound_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match=r"sound\.wav: holds no video"):
        read(tmp_path / "sound.wav")


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ClipError, match="holds no videos, pictures or arrays"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0, 0.5])
def test_broken_picture_is_refused_by_name(tmp_path: Path, share: float) -> None:
    picture = gray_clips()[..., 0]
    folder = write_folder(tmp_path / "walk", {"1.png": picture, "2.png": picture})
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ClipError, match=r"2\.png: not a picture"):
        read(folder)


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(level, text) for name, level, text in caplog.record_tuples if name != "e3d_deploy.data.levels"]


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((64, 96), 1, "walk: 64×96 L, scaled to 32×48 L"),
        ((64, 96, 3), 1, "walk: 64×96 RGB, scaled to 32×48 L"),
        ((64, 96, 3), 3, "walk: 64×96 RGB, scaled to 32×48 RGB"),
        ((*SIZE, 3), 1, "walk: RGB, converted to gray"),
    ],
)
def test_conversions_of_pictures_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...], channels: int, message: str
) -> None:
    picture = np.resize(np.arange(256, dtype=np.uint8), shape)
    read(write_folder(tmp_path / "walk", {"1.png": picture, "2.png": picture}), channels=channels)
    assert messages(caplog) == [(logging.WARNING, message)]


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        ((64, 96), 1, "walk.mp4: 64×96 yuv420p, scaled to 32×48 gray"),
        ((64, 96), 3, "walk.mp4: 64×96 yuv420p, scaled to 32×48 rgb24"),
        (SIZE, 1, "walk.mp4: yuv420p, converted to gray"),
    ],
)
def test_conversions_of_a_video_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int], channels: int, message: str
) -> None:
    read(write_video(tmp_path / "walk.mp4", gray_levels(size, [0, 100, 200])), channels=channels)
    assert messages(caplog) == [(logging.WARNING, message)]


def test_nothing_is_logged_without_a_conversion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write_folder(tmp_path / "gray", {"1.png": gray_clips()[..., 0]}))
    ramp = np.resize(np.arange(256, dtype=np.uint8), (*SIZE, 3))
    read(write_folder(tmp_path / "colour", {"1.png": ramp}), channels=3)
    read(write_video(tmp_path / "colour.mp4", gray_levels(SIZE, [0, 100, 200])), channels=3)
    assert messages(caplog) == []


def test_pictures_of_16_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    folder = write_folder(tmp_path / "walk", {"1.png": ramp})
    assert np.abs(read(folder)[0, 0, :, :, 0] - ramp / 257).max() <= 1


def test_names_with_odd_digits_are_sorted(tmp_path: Path) -> None:
    picture = np.zeros(SIZE, np.uint8)
    assert read(write_folder(tmp_path / "walk", {"a².png": picture, "²3.png": picture})).shape[1] == 2


# Data sets


def test_the_index_determines_a_sample_of_moving_mnist() -> None:
    data = MovingMNIST("train", length=6, image_size=(32, 40))
    sample = data[7]
    assert sample.shape == (6, 1, 32, 40)
    assert sample.dtype == torch.float32
    assert sample.min() == 0
    assert 0.9 < sample.max() <= 1
    assert torch.equal(sample, MovingMNIST("train", length=6, image_size=(32, 40))[7])
    assert not torch.equal(sample, data[8])
    assert not torch.equal(sample, MovingMNIST("train", length=6, image_size=(32, 40), seed=1)[7])
    assert not torch.equal(sample, MovingMNIST("valid", length=6, image_size=(32, 40))[7])


def numbered(clip: int, length: int) -> NDArray[np.uint8]:
    """Return a clip [T, 1, 1, 2] whose two pixels are the numbers of the clip and of the frame."""
    return np.array([[[[clip], [t]]] for t in range(length)], np.uint8)


def places_of(samples: list[Tensor]) -> list[tuple[int, int]]:
    """Return the clip and the first frame of each window that was cut from numbered clips."""
    return [tuple(sample[0].mul(255).round().int().flatten().tolist()) for sample in samples]


def test_windows_are_successive_frames_of_one_clip() -> None:
    data = Windows([numbered(clip=1, length=9), numbered(clip=2, length=4)], length=4)
    for index in range(30):
        sample = data[index]
        assert sample.shape == (4, 1, 1, 2)
        assert sample.dtype == torch.float32
        clip, start = places_of([sample])[0]
        assert sample[:, 0, 0, 0].mul(255).round().tolist() == [clip] * 4
        assert sample[:, 0, 0, 1].mul(255).round().tolist() == list(range(start, start + 4))


def test_windows_begin_at_every_frame_equally_often() -> None:
    data = Windows([numbered(clip=1, length=9), numbered(clip=2, length=4), numbered(clip=3, length=3)], length=4)
    places = places_of([data[index] for index in range(700)])
    assert set(places) == {(1, start) for start in range(6)} | {(2, 0)}  # clip 3 is too short
    counts = [places.count(place) for place in set(places)]
    assert min(counts) > 70  # 100 of each are expected; measured 86
    assert max(counts) < 130  # measured 111


def test_the_index_determines_a_window() -> None:
    clips = [numbered(clip=1, length=200)]
    first, again, other = Windows(clips, length=4), Windows(clips, length=4), Windows(clips, length=4, seed=1)
    assert all(torch.equal(first[index], again[index]) for index in range(10))
    assert not all(torch.equal(first[index], other[index]) for index in range(10))


def test_clips_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(ClipError, match="no clip has 6 frames; give longer clips, or a shorter context or horizon"):
        Windows([numbered(clip=1, length=5)], length=6)


class Constant(Extendable):
    """Samples whose values are the number of their data set and their index."""

    def __init__(self, number: int) -> None:
        self.number = number

    def take(self, index: int, before: int) -> Tensor:
        return torch.tensor([self.number, index])

    def spare(self, index: int) -> int:
        return 0


def test_mixture_keeps_its_shares() -> None:
    data = Mixture([Constant(0), Constant(1), Constant(2)], [3, 1, 0])
    samples = [data[index] for index in range(400)]
    assert [int(sample[1]) for sample in samples] == list(range(400))
    counts = [sum(int(sample[0]) == part for sample in samples) for part in range(3)]
    assert 270 < counts[0] < 330  # measured 301
    assert counts[2] == 0
    assert all(torch.equal(data[index], sample) for index, sample in enumerate(samples[:10]))


def test_each_sample_of_a_mixture_comes_from_its_part() -> None:
    parts = [MovingMNIST("train", length=2, image_size=(28, 28)), MovingMNIST("train", length=2, image_size=(32, 32))]
    data = Mixture(parts, [1, 1])
    samples = [data[index] for index in range(20)]
    chosen = [0 if sample.shape[-1] == 28 else 1 for sample in samples]
    assert set(chosen) == {0, 1}
    assert all(
        torch.equal(sample, parts[part][index])
        for index, (sample, part) in enumerate(zip(samples, chosen, strict=True))
    )


def test_mixture_shows_all_of_each_part() -> None:
    clips = Windows([numbered(clip=number, length=4) for number in range(10)], length=4)
    data = Mixture([Constant(0), clips], [1, 1])
    samples = [data[index] for index in range(400)]
    seen = {clip for clip, _ in places_of([sample for sample in samples if sample.ndim == 4])}
    assert seen == set(range(10))


def test_a_video_that_breaks_off_raises_source_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frames are good, unlike those of a video that cannot be read at all."""

    class Breaking:
        def __init__(self, file: object, **options: Any) -> None:
            self.whole = av_open(file, **options)
            self.streams, self.format = self.whole.streams, self.whole.format

        def demux(self, stream: object) -> Iterator[av.Packet]:
            # Flush the decoder, which holds frames back until more packets arrive.
            packets = self.whole.demux(stream)
            yield from islice(packets, 3)
            yield av.Packet()
            raise av.error.InvalidDataError(1, "cable pulled")

        def __enter__(self) -> "Breaking":
            return self

        def __exit__(self, *_: object) -> None:
            self.whole.close()

    av_open = av.open
    path = Path(str(files("e3d_deploy.data") / "clips" / "pedestrians.mp4"))
    monkeypatch.setattr(av, "open", Breaking)
    pictures = play(path, Form(image_size=(16, 16), channels=1)).pictures
    assert len(list(islice(pictures, 3))) == 3
    with pytest.raises(SourceLost, match="broke off after 3 of 150 frames") as caught:
        next(pictures)
    assert caught.value.exit_code == 6
