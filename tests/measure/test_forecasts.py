"""Errors of forecasts whose truth is known."""

import tracemalloc

import numpy as np
import pytest

from e3d_deploy import metrics
from e3d_deploy.measure.forecasts import with_truth


def test_errors_are_averaged_over_known_frames_without_extra_memory() -> None:
    rng = np.random.default_rng(0)
    forecasts = [rng.random((300, 1, 32, 32), np.float32) * 1.2 for _ in range(2)]
    contexts = [rng.random((3, 32, 32, 1), np.float32) for _ in range(2)]
    true_pictures = [rng.random((length, 32, 32, 1), np.float32) for length in (300, 100)]
    done = with_truth(forecasts, contexts, true_pictures)
    tracemalloc.start()
    found = done.mse, done.copy_mse
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < done.frames.nbytes / 10
    truth = np.moveaxis(np.concatenate(true_pictures), -1, 1)
    ahead = np.concatenate([forecasts[0], forecasts[1][:100]]).clip(0, 1)
    copies = np.concatenate([contexts[0][-1:].repeat(300, axis=0), contexts[1][-1:].repeat(100, axis=0)])
    assert found[0] == pytest.approx(metrics.mse(ahead, truth).mean())
    assert found[1] == pytest.approx(metrics.mse(np.moveaxis(copies, -1, 1), truth).mean())
