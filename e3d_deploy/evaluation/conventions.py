"""Forecast measures under the conventions of published results. The sources are listed in docs/metrics.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import metrics

Function = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""Function of an unclipped prediction and the truth, both [T, C, H, W]; returns one number per frame, [T]."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure: a column of the table of results."""

    function: Function
    meaning: str
    """Description of the measure for reports."""
    overall: Literal["mean", "sum"] = "mean"
    """Reduction of the numbers of all predicted frames to one number."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Measures as one publication defines them."""

    name: str
    meaning: str
    """Description of the convention for reports."""
    measures: Mapping[str, Measure]


def clipped(function: Function) -> Function:
    """Return a function that clips the prediction to [0, 1] and then applies `function`."""
    return lambda prediction, truth: function(prediction.clip(0, 1), truth)


def _eight_bits(function: Function) -> Function:
    return lambda prediction, truth: function(metrics.eight_bits(prediction), metrics.eight_bits(truth))


SCIKIT_IMAGE = (
    "structural similarity as scikit-image computes it: 7×7 uniform window, sample covariance, K1 0.01, K2 0.03"
)

OPENSTL = Convention(
    name="openstl",
    meaning="Numbers as in OpenSTL's tables: MSE and MAE of unclipped predictions, PSNR and SSIM of predictions "
    "clipped to [0, 1]; every number is the mean over frames and sequences.",
    measures={
        "mse": Measure(function=metrics.mse, meaning="squared error, summed over pixels and colours, not clipped"),
        "mae": Measure(function=metrics.mae, meaning="absolute error, summed over pixels and colours, not clipped"),
        "psnr": Measure(function=clipped(metrics.psnr), meaning="PSNR of each frame in dB on floats, peak 1"),
        "ssim": Measure(function=clipped(metrics.ssim), meaning=f"{SCIKIT_IMAGE}, data range 1"),
        "ssim_range_2": Measure(
            function=clipped(lambda prediction, truth: metrics.ssim(prediction, truth, data_range=2)),
            meaning=f"{SCIKIT_IMAGE}, data range 2, the default of scikit-image up to 0.19 for "
            "floats: the SSIM that OpenSTL publishes",
        ),
    },
)

ORIGINAL = Convention(
    name="original",
    meaning="Numbers as google/e3d_lstm and PredRNN print them: predictions are clipped to [0, 1]. MSE is listed per "
    "frame; the overall MSE is the sum over the frames of a sequence. PSNR and SSIM are computed on 8-bit pictures and "
    "averaged over frames and sequences.",
    measures={
        "mse": Measure(
            function=clipped(metrics.mse), overall="sum", meaning="squared error, summed over pixels and colours"
        ),
        "mae": Measure(
            function=clipped(metrics.mae),
            meaning="absolute error, summed over pixels and colours; not printed by the original",
        ),
        "psnr": Measure(
            function=_eight_bits(metrics.psnr_eight_bits),
            meaning="PSNR of each frame in dB, values truncated to 8 bits, peak 255",
        ),
        "ssim": Measure(
            function=_eight_bits(lambda prediction, truth: metrics.ssim(prediction, truth, data_range=255)),
            meaning=f"{SCIKIT_IMAGE}, values truncated to 8 bits, data range 255, as PredRNN prints it",
        ),
    },
)

CONVENTIONS = {convention.name: convention for convention in (OPENSTL, ORIGINAL)}
