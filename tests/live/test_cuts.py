"""Cuts are distinguished from motion."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import e3d_deploy
from e3d_deploy.data.form import Form
from e3d_deploy.data.play import play
from e3d_deploy.live.cuts import CutDetector

FILM = Path(e3d_deploy.__file__).parent / "data" / "clips" / "pedestrians.mp4"


def film() -> list[NDArray[np.float32]]:
    pictures = play(FILM, Form(image_size=(72, 96), channels=1)).pictures
    return [np.float32(picture.transpose(2, 0, 1)) / 255 for picture in pictures]


def cuts(frames: list[NDArray[np.float32]]) -> list[int]:
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector.is_cut(frame)]


def test_motion_in_a_real_film_is_not_a_cut() -> None:
    frames = film()
    assert cuts(frames) == []
    assert cuts(frames[::10]) == [], "ten times faster motion"


def test_jump_to_another_scene_is_one_cut() -> None:
    frames = film()
    assert cuts([*frames[:40], *(1 - frame for frame in frames[40:80])]) == [40]


def test_fast_motion_raises_the_threshold_of_a_cut() -> None:
    rng = np.random.default_rng(0)
    frames = [np.float32(rng.random((1, 8, 8))) for _ in range(40)]
    assert cuts(frames) == []


def test_pictures_before_a_reset_do_not_count() -> None:
    detector = CutDetector()
    frames = film()
    for frame in frames[:20]:
        detector.is_cut(frame)
    detector.reset()
    assert not detector.is_cut(1 - frames[20])
