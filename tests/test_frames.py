"""Conversion of pictures to frames and back."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import ShapeError
from e3d_deploy.frames import to_frames, to_input, to_pictures

SIZE = (8, 12)


def bytes_of(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_bytes_become_frames(channels: int, lead: tuple[int, ...]) -> None:
    pictures = bytes_of(*lead, *SIZE, channels)
    frames = to_frames(pictures, image_size=SIZE, channels=channels)
    assert frames.dtype == np.float32
    assert frames.flags.c_contiguous
    assert frames.shape == (*lead, channels, *SIZE)
    for index in np.ndindex(*lead):
        for colour in range(channels):
            expected = pictures[index][:, :, colour] / np.float32(255)
            np.testing.assert_array_equal(frames[index][colour], expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_frames_unscaled(dtype: type[np.floating[Any]]) -> None:
    pictures = np.random.default_rng(0).random((4, *SIZE, 3)).astype(dtype)
    frames = to_frames(pictures, image_size=SIZE, channels=3)
    assert frames.dtype == np.float32
    assert frames.flags.c_contiguous
    np.testing.assert_array_equal(frames, np.transpose(pictures, (0, 3, 1, 2)).astype(np.float32))


def test_both_ends_of_the_range_are_allowed() -> None:
    pictures = np.zeros((*SIZE, 1))
    pictures[0, 0] = 1
    frames = to_frames(pictures, image_size=SIZE, channels=1)
    assert (frames.min(), frames.max()) == (0, 1)


def test_every_byte_survives_the_round_trip() -> None:
    pictures = np.arange(256, dtype=np.uint8).reshape(8, 32, 1)
    frames = to_frames(pictures, image_size=(8, 32), channels=1)
    np.testing.assert_array_equal(to_pictures(frames), pictures)


def test_frames_are_clipped_and_rounded() -> None:
    frames = np.array([-0.5, 0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1, 7], np.float32).reshape(1, 2, 4)
    pictures = to_pictures(frames)
    assert pictures.dtype == np.uint8
    assert pictures.shape == (2, 4, 1)
    assert pictures.ravel().tolist() == [0, 0, 0, 1, 254, 255, 255, 255]


def with_pixel(value: float) -> NDArray[np.float32]:
    pictures = np.full((*SIZE, 1), 0.5, np.float32)
    pictures[3, 4] = value
    return pictures


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (bytes_of(8, 10, 1), r"got \[8, 10, 1\] uint8, expected \[..., 8, 12, 1\]; resize it, or export a model"),
        (bytes_of(12, 8, 1), r"got \[12, 8, 1\] uint8, expected \[..., 8, 12, 1\]"),
        (bytes_of(8, 12, 3), r"got \[8, 12, 3\] uint8, expected \[..., 8, 12, 1\]"),
        (bytes_of(1, 8, 12), r"got \[1, 8, 12\] uint8, expected \[..., 8, 12, 1\]"),
        (bytes_of(8, 12), r"got \[8, 12\] uint8, expected \[..., 8, 12, 1\]"),
        (bytes_of(8, 12, 1).astype(np.int32), r"got int32, expected uint8, or float in \[0, 1\]; convert it"),
        (bytes_of(8, 12, 1).astype(bool), "got bool, expected uint8"),
        (with_pixel(np.nan), "holds NaN or infinity, which would stay"),
        (with_pixel(np.inf), "holds NaN or infinity, which would stay"),
        (
            with_pixel(255),
            r"float32 picture out of range, values from 0.5 to 255, expected \[0, 1\]; divide by 255, or pass uint8",
        ),
        (
            with_pixel(-0.25),
            r"float32 picture out of range, values from -0.25 to 0.5, .* scale it to \[0, 1\], or pass",
        ),
    ],
)
def test_other_pictures_are_refused(pictures: NDArray[Any], message: str) -> None:
    with pytest.raises(ShapeError, match=f"frame 7: {message}"):
        to_frames(pictures, image_size=SIZE, channels=1, name="frame 7")


def test_underflow_to_zero_is_no_error_even_if_numpy_is_set_to_raise() -> None:
    with np.errstate(all="raise"):
        frames = to_frames(np.full((*SIZE, 1), 1e-300), image_size=SIZE, channels=1)
        assert not frames.any()
        assert not to_input(np.full((1, 1, *SIZE), 1e-300)).any()


def test_an_input_is_copied_only_if_necessary() -> None:
    frames = np.random.default_rng(0).random((1, 1, *SIZE), np.float32)
    assert to_input(frames) is frames
    read_only = frames.copy()
    read_only.flags.writeable = False
    for other in (read_only, frames[..., ::-1], frames.astype(">f4"), frames.astype(np.float64)):
        found = to_input(other)
        np.testing.assert_array_equal(found, other)
        assert (found.dtype, found.flags.carray) == (np.float32, True)
    with pytest.raises(ShapeError, match="frame: got int32, expected float"):
        to_input(np.zeros((1, 1, *SIZE), np.int32))
