"""Measures compared with scikit-image, with output of the released code, and with values computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from e3d_deploy.metrics import MEASURES, eight_bits, mae, mse, psnr, psnr_eight_bits, ssim
from tests.golden import GOLDEN, read

MEASURE = 1e-12  # float64, relative; measured 8.9e-16 (SSIM), 0 (PSNR)
OLD_SSIM = 1e-6  # compared with float32 in scikit-image 0.19.3; measured 2.5e-8
OLD_PSNR = 2e-5  # dB; the released code computes the logarithm in float32; measured 5.3e-6

both_colours = pytest.mark.parametrize("channels", [1, 3])


def clips(channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a prediction and the truth, [B, T, C, H, W], not square."""
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


@pytest.mark.parametrize("data_range", [2, 255])
def test_ssim_equals_scikit_image_with_other_ranges(data_range: float) -> None:
    prediction, truth = (data_range * clip[0, 0] for clip in clips(3))
    expected = structural_similarity(prediction, truth, data_range=data_range, channel_axis=0)
    assert ssim(prediction, truth, data_range=data_range) == pytest.approx(expected, rel=MEASURE)


# Recorded from the frames below: structural_similarity(…, multichannel=True) of scikit-image 0.19.3 on float32, as
# OpenSTL calls it, and compare_ssim(…, multichannel=True) of 0.16.2 on uint8, as PredRNN does.
@pytest.mark.parametrize(
    ("channels", "on_floats", "on_eight_bits"),
    [(1, 0.6616737842559814, 0.6441323533000397), (3, 0.6632464528083801, 0.6435087038410305)],
)
def test_ssim_is_what_publications_got_from_old_scikit_image(
    channels: int, on_floats: float, on_eight_bits: float
) -> None:
    rng = np.random.default_rng(channels)
    truth = rng.random((channels, 32, 24)).astype(np.float32)
    truth[:, :, :12] = 0
    noise = np.float32(0.2) * rng.random((channels, 32, 24)).astype(np.float32)
    prediction = (truth + noise - np.float32(0.05)).clip(0, 1)
    assert ssim(prediction, truth, data_range=2) == pytest.approx(on_floats, rel=OLD_SSIM)
    found = ssim(eight_bits(prediction), eight_bits(truth), data_range=255)
    assert found == pytest.approx(on_eight_bits, rel=MEASURE)
    assert abs(ssim(prediction, truth) - on_floats) > 0.01


@pytest.mark.parametrize("name", ["nd3", "nd4"])
def test_psnr_of_8_bits_equals_the_released_code(name: str) -> None:
    arrays, _ = read(GOLDEN / "metrics.npz")
    one, other = (arrays[f"batch_psnr/{name}/{side}"] for side in "ab")
    pictures = [np.moveaxis(one, -1, 1), np.moveaxis(other, -1, 1)] if one.ndim == 4 else [one[:, None], other[:, None]]
    found = psnr_eight_bits(*pictures)
    assert found.shape == (3,)
    assert found.mean() == pytest.approx(float(arrays[f"batch_psnr/{name}/psnr"]), abs=OLD_PSNR)
    assert psnr_eight_bits(pictures[0], pictures[0]).mean() == arrays["batch_psnr/identical/psnr"] == np.inf


def test_eight_bits_are_clipped_and_truncated() -> None:
    frames = np.array([-0.5, 0, 0.5, 254.9 / 255, 1, 1.5], np.float32)
    assert eight_bits(frames).tolist() == [0, 0, 127, 254, 255, 255]


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
def test_measures_are_computed_in_float64(name: str) -> None:
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
