"""Patch sizes that divide frames, and the preset that is suggested without timing."""

from pathlib import Path

import numpy as np
import pytest

from e3d_deploy.training.sizes import fitting_patch, size_arguments
from tests.tools import e3d


@pytest.mark.parametrize(
    ("image_size", "at_most", "patch"),
    [
        ((64, 64), 8, 8),
        ((64, 64), 4, 4),
        ((28, 28), 8, 7),
        ((60, 80), 8, 5),
        ((1080, 1920), 8, 60),
        ((512, 512), 8, 16),
        ((101, 103), 8, None),
    ],
)
def test_a_patch_size_divides_the_frame_into_few_patches(
    image_size: tuple[int, int], at_most: int, patch: int | None
) -> None:
    assert fitting_patch(image_size, at_most=at_most) == patch


def test_a_patch_size_is_named_only_if_that_of_the_preset_does_not_suit() -> None:
    assert size_arguments("tiny", (64, 64)) == ("--preset", "tiny")
    assert size_arguments("tiny", (60, 60)) == ("--preset", "tiny", "--patch-size", "6")


def test_the_suggestion_without_timing_can_be_trained_too(tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", np.zeros((12, 2, 60, 60, 1), np.uint8))
    options = ["--json", "--image-size", "60x60", "--length", "2", "--layout", "NTHWC"]
    done = e3d("data", "inspect", tmp_path / "clips.npy", *options)
    assert "--image-size 60x60 --channels 1 -o runs/first --preset tiny --patch-size 6" in done.stderr


@pytest.mark.parametrize("options", [["--json"], []])
def test_nothing_is_suggested_for_frames_without_a_patch_size(tmp_path: Path, options: list[str]) -> None:
    np.save(tmp_path / "clips.npy", np.zeros((12, 2, 50, 67, 1), np.uint8))
    done = e3d("data", "inspect", tmp_path / "clips.npy", "--image-size", "50x67", "--length", "2", *options)
    assert "no patch size suits frames of this size" in done.stderr
    assert "e3d train" not in done.stderr
