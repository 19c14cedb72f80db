"""Tests that a bundle and snapshots from commit faccf7a still open and give the outputs recorded at that commit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import runtime
from e3d_deploy.runtime import Bundle, Predictor, Snapshot
from e3d_deploy.runtime.backends.torch_compiled import TorchCompiledBackend
from tests.runtime.test_snapshot import ACROSS_BACKENDS

OLD = Path(__file__).parents[1] / "golden" / "faccf7a"
SNAPSHOTS = {"half_filled": 1, "wrapped": 5}
"""Number of frames that were pushed before each snapshot."""

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    """Return the pictures `frames` [T, H, W, C], and the outputs recorded after each picture.

    The outputs are `predictions` [T, C, H, W] and `forecasts` [T, horizon, C, H, W].
    """
    with np.load(OLD / "recorded.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(params=["auto", "onnxruntime", "openvino", "torch", "torch-compiled"])
def old(request: pytest.FixtureRequest) -> Iterator[Predictor]:
    """Load the old bundle on each backend that needs no GPU; `torch-compiled` runs without a C++ compiler."""
    backend: Any = request.param
    if backend == "openvino":
        pytest.importorskip("openvino")
    if backend == "torch-compiled":
        backend = TorchCompiledBackend(Bundle.open(OLD / "tiny.e3d"), threads=1, compiler="aot_eager")
    with runtime.load(OLD / "tiny.e3d", backend, threads=1) as predictor:
        yield predictor


def test_a_stream_returns_the_recorded_outputs(old: Predictor, recorded: Arrays) -> None:
    expect(old.stream(renewal="none"), recorded, first=0)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_restored_snapshot_returns_the_recorded_outputs(old: Predictor, recorded: Arrays, name: str) -> None:
    stream = old.stream(Snapshot.load(OLD / f"{name}.npz"))
    pushed = SNAPSHOTS[name]
    assert stream.pushed == pushed
    np.testing.assert_allclose(stream.forecast(3), recorded["forecasts"][pushed - 1], rtol=0, atol=ACROSS_BACKENDS)
    expect(stream, recorded, first=pushed)


def expect(stream: runtime.Stream, recorded: Arrays, *, first: int) -> None:
    """Push the recorded pictures from number `first` on, and compare all outputs with the recorded outputs."""
    for number in range(first, len(recorded["frames"])):
        stream.push(recorded["frames"][number])
        prediction, forecast = stream.prediction, stream.forecast(3)
        assert prediction is not None
        np.testing.assert_allclose(prediction[0], recorded["predictions"][number], rtol=0, atol=ACROSS_BACKENDS)
        np.testing.assert_allclose(forecast, recorded["forecasts"][number], rtol=0, atol=ACROSS_BACKENDS)
