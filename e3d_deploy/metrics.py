"""Measures of forecast quality against the truth. They need only NumPy, so that they can run on a device.

All measures accept frames [..., C, H, W] in [0, 1] and return one number per frame, [...].
docs/metrics.md lists the measures of each publication, and their conventions.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from e3d_deploy.errors import ShapeError

Frames = NDArray[np.floating]
EightBits = NDArray[np.uint8]
"""Frames quantised by `eight_bits`, [..., C, H, W]."""


def mse(prediction: Frames, truth: Frames) -> NDArray[np.float64]:
    """Return the squared error summed over the pixels of a frame, as in the paper's tables."""
    difference = prediction.astype(np.float64) - truth
    result: NDArray[np.float64] = np.square(difference).sum(axis=(-3, -2, -1))
    return result


def mae(prediction: Frames, truth: Frames) -> NDArray[np.float64]:
    """Return the absolute error summed over the pixels of a frame."""
    difference = prediction.astype(np.float64) - truth
    result: NDArray[np.float64] = np.abs(difference).sum(axis=(-3, -2, -1))
    return result


def psnr(prediction: Frames, truth: Frames) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of float frames with peak 1 (dB); infinite for equal frames."""
    difference = prediction.astype(np.float64) - truth
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = -10 * np.log10(np.square(difference).mean(axis=(-3, -2, -1)))
    return result


def eight_bits(frames: Frames) -> EightBits:
    """Quantise frames like the released code: clip to [0, 1], multiply by 255, and truncate without rounding.

    Source: google/e3d_lstm src/trainer.py, test.
    """
    pictures: EightBits = (frames.clip(0, 1) * 255).astype(np.uint8)
    return pictures


def psnr_eight_bits(prediction: EightBits, truth: EightBits) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of quantised frames with peak 255 (dB); infinite for equal frames.

    Source: google/e3d_lstm src/trainer.py, batch_psnr, before its mean over the batch.
    """
    difference = prediction.astype(np.float64) - truth
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = 10 * np.log10(255**2 / np.square(difference).mean(axis=(-3, -2, -1)))
    return result


def ssim(prediction: NDArray[Any], truth: NDArray[Any], *, data_range: float = 1.0) -> NDArray[np.float64]:
    """Return the structural similarity with the defaults of scikit-image, averaged over pixels and channels.

    Uniform window of 7×7, sample covariance (n − 1), K1 = 0.01, K2 = 0.03, without a border of 3 pixels.
    test_ssim_equals_scikit_image compares the result with scikit-image.

    Args:
        data_range: range of the values: 1 for frames, 255 for quantised frames. scikit-image up to 0.19 assumed 2
            for floats by default.

    Raises:
        ShapeError: The frames are smaller than the window.
    """
    side, c1, c2 = 7, (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    if min(prediction.shape[-2:]) < side:
        raise ShapeError(
            f"ssim: got frames of {prediction.shape[-2:]} pixels, expected at least {side}x{side}, its window"
        )
    x, y = prediction.astype(np.float64), truth.astype(np.float64)

    def local_mean(frames: NDArray[np.float64]) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = sliding_window_view(frames, side, axis=-2).mean(axis=-1)
        means: NDArray[np.float64] = sliding_window_view(rows, side, axis=-1).mean(axis=-1)
        return means

    mean_x, mean_y = local_mean(x), local_mean(y)
    unbiased = side**2 / (side**2 - 1)
    var_x = unbiased * (local_mean(x * x) - mean_x**2)
    var_y = unbiased * (local_mean(y * y) - mean_y**2)
    covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    result: NDArray[np.float64] = similarity.mean(axis=(-3, -2, -1))
    return result


MEASURES = {"mse": mse, "mae": mae, "psnr": psnr, "ssim": ssim}
"""Measures of a quality table, in the order of its columns."""
