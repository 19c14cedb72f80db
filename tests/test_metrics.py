"""The measures against scikit-image, and by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from e3d_deploy.metrics import MEASURES, mae, mse, psnr, ssim

MEASURE = 1e-12  # float64, relative; measured 8.9e-16 (SSIM), 0 (PSNR)

both_colours = pytest.mark.parametrize("channels", [1, 3])


def clips(channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A prediction and the truth, [B, T, C, H, W], not square."""
    rng = np.random.default_rng(0)
    truth = rng.random((2, 3, channels, 16, 24))
    return (truth + 0.2 * rng.standard_normal(truth.shape)).clip(0, 1), truth


@both_colours
def test_ssim_equals_scikit_image(channels: int) -> None:
    prediction, truth = clips(channels)
    found = ssim(prediction, truth)
    assert found.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = structural_similarity(prediction[index], truth[index], data_range=1, channel_axis=0)
        assert found[index] == pytest.approx(expected, rel=MEASURE)


@both_colours
def test_psnr_equals_scikit_image(channels: int) -> None:
    prediction, truth = clips(channels)
    found = psnr(prediction, truth)
    assert found.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = peak_signal_noise_ratio(truth[index], prediction[index], data_range=1)
        assert found[index] == pytest.approx(expected, rel=MEASURE)


def test_errors_are_summed_over_the_pixels_of_a_frame() -> None:
    truth = np.full((2, 3, 8, 8), 0.5)
    prediction = truth.copy()
    prediction[0, 0, 0, 0] = 1
    prediction[0, 2, 7, 7] = 0.25
    assert mse(prediction, truth).tolist() == [0.25 + 0.0625, 0]
    assert mae(prediction, truth).tolist() == [0.5 + 0.25, 0]


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_taken_in_float64(name: str) -> None:
    prediction, truth = (clip.astype(np.float32) for clip in clips(1))
    found = MEASURES[name](prediction, truth)
    assert found.dtype == np.float64
    expected = MEASURES[name](prediction.astype(np.float64), truth.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=MEASURE)


def test_equal_frames_are_perfect() -> None:
    frames, _ = clips(3)
    assert (mse(frames, frames) == 0).all()
    assert (mae(frames, frames) == 0).all()
    assert (psnr(frames, frames) == np.inf).all()
    np.testing.assert_allclose(ssim(frames, frames), 1, rtol=MEASURE)
