"""Moving MNIST (Srivastava et al., 2015), made on the fly from digits that ship with the package."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.arrays import load_member, members
from e3d_deploy.errors import ClipError, ConfigError

DIGIT_SIDE = 28
STEP_LENGTH = 0.1
"""Distance that a digit moves per frame, as a share of its free way; the value of the published data set."""


SPLITS = {"train": slice(0, 4500), "valid": slice(4500, 5000), "test": slice(5000, 6000)}


def suits(image_size: tuple[int, int], channels: int) -> bool:
    """Return True if a network can forecast Moving MNIST, which is gray and needs frames of at least 28 pixels."""
    return channels == 1 and min(image_size) >= DIGIT_SIDE


def load_digits(split: Literal["train", "valid", "test"]) -> NDArray[np.uint8]:
    """Return handwritten digits on background 0, uint8 [N, 28, 28]: 4,500 to train, 500 to validate, 1,000 to test.

    Source: the first 6,000 digits of the MNIST training set; see data/README.md for origin and licence.
    """
    with as_file(files("e3d_deploy.data") / "digits.npz") as path, np.load(path) as archive:
        digits: NDArray[np.uint8] = archive["images"]
    return digits[SPLITS[split]]


def held_out(digits: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the digits that equal one of the digits for validation or tests, [N]."""
    ours = {digit.tobytes() for digit in (*load_digits("valid"), *load_digits("test"))}
    return np.array([digit.tobytes() in ours for digit in digits], bool)


def read_digits(path: Path) -> NDArray[np.uint8]:
    """Read digits for training from `images` in an `.npz` file, uint8 [N, 28, 28].

    Raises:
        ClipError: the file does not exist, or has no such array.
        ConfigError: some digits are held out for validation or tests. After training on these digits, the results of
            validation and tests would be meaningless.
    """
    advice = "give an .npz with `images`, uint8 [N, 28, 28]"
    if not path.is_file():
        raise ClipError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {advice}")
    if "images" not in members(path):
        raise ClipError(f"{path}: holds no `images`; {advice}")
    digits = load_member(path, "images")
    if digits.dtype != np.uint8 or digits.ndim != 3 or digits.shape[1:] != (DIGIT_SIDE, DIGIT_SIDE) or not len(digits):
        raise ClipError(
            f"{path}: images: got {list(digits.shape)} {digits.dtype}, expected uint8 [N, 28, 28]; {advice}"
        )
    found = np.flatnonzero(held_out(digits))
    if len(found):
        raise ConfigError(
            f"{path}: {len(found)} of its {len(digits)} digits are held out for validation and tests, the first is "
            f"number {found[0]}; remove them"
        )
    return digits


def moving_mnist(
    digits: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    length: int,
    image_size: tuple[int, int] = (64, 64),
    count: int = 2,
) -> NDArray[np.uint8]:
    """Make one clip of digits that move in straight lines and bounce off the border.

    Args:
        digits: digits to draw from, uint8 [N, 28, 28].
        rng: generator that draws the digits, their positions and their directions.
        length: number of frames T.
        image_size: height and width (pixels); at least 28 each.
        count: number of digits in the clip; where digits overlap, the brighter pixel is shown.

    Returns:
        The clip, uint8 [T, H, W, 1].

    Raises:
        ConfigError: `image_size` is too small for a digit.

    Source: the generator of the published data set. Each digit has a position in the unit square and a random
    direction, and moves by 0.1 per frame; at a border the position is clamped and the speed is reversed.
    """
    space = np.array(image_size) - DIGIT_SIDE
    if space.min() < 0:
        raise ConfigError(f"image_size: {image_size} is too small for digits of {DIGIT_SIDE} pixels")
    clip = np.zeros((length, *image_size, 1), np.uint8)
    for digit in digits[rng.integers(len(digits), size=count)]:
        position = rng.random(2)
        angle = rng.random() * 2 * np.pi
        speed = STEP_LENGTH * np.array([np.sin(angle), np.cos(angle)])
        for frame in clip:
            position += speed
            speed = np.where((position <= 0) | (position >= 1), -speed, speed)
            position = position.clip(0, 1)
            top, left = (space * position).astype(int)
            square = frame[top : top + DIGIT_SIDE, left : left + DIGIT_SIDE, 0]
            np.maximum(square, digit, out=square)
    return clip
