"""Measures that publications report for a forecast, and how each computes them. docs/metrics.md has the sources."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import metrics

Function = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""A prediction, as computed, and the truth, [T, C, H, W], to one number per frame, [T]."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column of a table."""

    function: Function
    meaning: str
    overall: Literal["mean", "sum"] = "mean"
    """Reduction over the predicted frames to one number."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One publication's way to measure."""

    name: str
    meaning: str
    measures: Mapping[str, Measure]


def clipped(function: Function) -> Function:
    """The same of the prediction clipped to [0, 1]."""
    return lambda prediction, truth: function(prediction.clip(0, 1), truth)


def _eight_bits(function: Function) -> Function:
    return lambda prediction, truth: function(metrics.eight_bits(prediction), metrics.eight_bits(truth))


SCIKIT_IMAGE = (
    "structural similarity as scikit-image computes it: 7×7 uniform window, sample covariance, K1 0.01, K2 0.03"
)

OPENSTL = Convention(
    name="openstl",
    meaning="As OpenSTL's tables: MSE and MAE of predictions as computed, PSNR and SSIM of predictions clipped to "
    "[0, 1], and every number the mean over frames and sequences.",
    measures={
        "mse": Measure(function=metrics.mse, meaning="squared error, summed over pixels and colours, not clipped"),
        "mae": Measure(function=metrics.mae, meaning="absolute error, summed over pixels and colours, not clipped"),
        "psnr": Measure(function=clipped(metrics.psnr), meaning="PSNR of each frame in dB on floats, peak 1"),
        "ssim": Measure(function=clipped(metrics.ssim), meaning=f"{SCIKIT_IMAGE}, data range 1"),
        "ssim_range_2": Measure(
            function=clipped(lambda prediction, truth: metrics.ssim(prediction, truth, data_range=2)),
            meaning=f"{SCIKIT_IMAGE}, data range 2, which scikit-image up to 0.19 took for floats: "
            "the SSIM that OpenSTL publishes",
        ),
    },
)

ORIGINAL = Convention(
    name="original",
    meaning="As google/e3d_lstm and PredRNN print them: predictions clipped to [0, 1]; MSE per frame, overall per "
    "sequence, that is summed over its frames; PSNR and SSIM of pictures of 8 bits, mean over frames and sequences.",
    measures={
        "mse": Measure(
            function=clipped(metrics.mse), overall="sum", meaning="squared error, summed over pixels and colours"
        ),
        "mae": Measure(
            function=clipped(metrics.mae),
            meaning="absolute error, summed over pixels and colours; the original prints none",
        ),
        "psnr": Measure(
            function=_eight_bits(metrics.psnr_eight_bits),
            meaning="PSNR of each frame in dB, values cut off to 8 bits, peak 255",
        ),
        "ssim": Measure(
            function=_eight_bits(lambda prediction, truth: metrics.ssim(prediction, truth, data_range=255)),
            meaning=f"{SCIKIT_IMAGE}, values cut off to 8 bits, data range 255, as PredRNN prints it",
        ),
    },
)

CONVENTIONS = {convention.name: convention for convention in (OPENSTL, ORIGINAL)}
