"""Tests that a plain stream reads pictures in place and allocates no memory besides its results."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e3d_deploy import runtime
from e3d_deploy.errors import ShapeError
from e3d_deploy.runtime import Predictor
from tests.fake_backend import FakeBackend, picture, predictor_of

GROWTH = 4096
"""Maximum memory that 1,000 pushes and 100 forecasts may leave in use (bytes).

Measured 547 and 728, and seldom up to 10,500 when Python fills its lists of small objects. The best of three rounds
counts, because a leak shows in every round.
"""
BESIDE_FRAMES = 6144
"""Maximum temporary memory of a push besides frames, for Python's objects (bytes).

Measured 2,400 with ONNX Runtime, 3,700 with OpenVINO.
"""


@pytest.fixture(params=["onnxruntime", "openvino"])
def predictor(exported: Path, request: pytest.FixtureRequest) -> Iterator[Predictor]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with runtime.load(exported / "tiny.e3d", request.param, threads=1) as predictor:
        yield predictor


def test_1000_frames_take_no_memory_but_their_results(predictor: Predictor) -> None:
    """The garbage collector is off, so the test also fails if calls leave garbage."""
    pictures = np.random.default_rng(0).integers(0, 256, (50, 16, 24, 1), np.uint8)
    frame_bytes, stream = 4 * 16 * 24, predictor.stream(renewal="none")
    # Limits of the memory that stays, and of the temporary memory of a push and of a forecast. A push needs three
    # frames: the prediction, and the picture as a frame before and after its division by 255.
    limits = GROWTH, 3 * frame_bytes + BESIDE_FRAMES, 5 * frame_bytes + BESIDE_FRAMES
    out = np.empty((3, 16, 24, 1), np.uint8)

    def peak(function: Callable[[], object]) -> int:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for picture in np.tile(pictures, (20, 1, 1, 1)):  # until Python has allocated its caches of small objects
            stream.push(picture)
        stream.predict(3, out=out)
        rounds = []
        for _ in range(3):
            start, _ = tracemalloc.get_traced_memory()
            pushing = max(peak(partial(stream.push, pictures[number % 50])) for number in range(1000))
            predicting = max(peak(partial(stream.predict, 3, out=out)) for _ in range(100))
            rounds.append((tracemalloc.get_traced_memory()[0] - start, pushing, predicting))
            least = [min(values) for values in zip(*rounds, strict=True)]
            if all(one < limit for one, limit in zip(least, limits, strict=True)):
                break
    finally:
        tracemalloc.stop()
        gc.enable()
    assert all(one < limit for one, limit in zip(least, limits, strict=True)), (rounds, limits)


def test_pictures_are_taken_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, seen = FakeBackend(), []
    step = backend.step

    def watched(frame: Any, state: Any) -> Any:
        seen.append(frame)
        return step(frame, state)

    monkeypatch.setattr(backend, "step", watched)
    stream = predictor_of(backend).stream(renewal="none")
    array, tensor = picture(1), torch.full((4, 8, 1), 2, dtype=torch.uint8)
    stream.push(array)
    stream.push(tensor)
    stream.push(torch.full((4, 8, 1), 0.5))
    assert np.shares_memory(seen[0], array)
    assert np.shares_memory(seen[1], tensor.numpy())
    assert [frame.dtype for frame in seen] == [np.uint8, np.uint8, np.float32]


class OnGPU:
    """Stand-in for a tensor on a GPU, with shape, type and device but no readable memory."""

    shape, dtype = (4, 8, 1), "torch.uint8"

    def __init__(self, dtype: str = "torch.uint8") -> None:
        self.dtype = dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: object) -> object:
        raise AssertionError("nobody asks for its memory")

    def __getitem__(self, index: None) -> "OnGPU":
        return self


def test_a_picture_on_a_gpu_is_for_backends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    predictor = predictor_of(backend)
    with predictor.streams(renewal="none") as streams:
        for stream in (predictor.stream(renewal="none"), streams.open()):
            with pytest.raises(ShapeError, match="on a GPU, the backend takes only pictures on the host; copy"):
                stream.push(OnGPU())
    taken: list[object] = []

    def step(frame: object, state: object) -> tuple[Any, object]:
        taken.append(frame)
        return np.zeros((1, 1, 4, 8), np.float32), state

    monkeypatch.setattr(backend, "step", step)
    backend.device = backend  # type: ignore[assignment]
    on_gpu = OnGPU()
    predictor.stream(renewal="none").push(on_gpu)
    assert taken == [on_gpu]
    with pytest.raises(ShapeError, match=r"got torch\.float32 on a GPU, the backend takes only uint8 pictures"):
        predictor.stream(renewal="none").push(OnGPU("torch.float32"))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 8, 1, requires_grad=True), torch.zeros(4, 8, 1, dtype=torch.bfloat16)]
)
def test_what_gives_no_memory_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="is not an array that NumPy can read"):
        predictor_of(FakeBackend()).stream(renewal="none").push(wrong)
