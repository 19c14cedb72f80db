"""Tests that streams of a real network share batches, and nothing else."""

import asyncio
import gc
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import runtime
from e3d_deploy.errors import StreamError
from e3d_deploy.runtime import Predictor, SlotStream
from e3d_deploy.runtime.backends.host import HostState
from tests.fake_backend import asked

OTHER_SIZE = 1e-5
"""Largest difference of a stream's frames between steps of different numbers of streams.

Kernels sum in another order then. Measured 1.2e-6 on ONNX Runtime; OpenVINO gave the same bits.
"""
LEFT_BYTES = 200_000
"""Maximum memory in use after 60 rounds of four streams (bytes); measured 27,500. A state has 30,000 bytes."""
Frames = NDArray[np.float32]


@pytest.fixture(params=["onnxruntime", "openvino"])
def predictor(any_batch: Path, request: pytest.FixtureRequest) -> Iterator[Predictor]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with runtime.load(any_batch, request.param, threads=1) as predictor:
        yield predictor


def clips(count: int, seed: int = 0, length: int = 9) -> NDArray[np.uint8]:
    """Return random clips, [stream, T, H, W, C], long enough to fill a ring of 4 slots twice."""
    return np.random.default_rng(seed).integers(0, 256, (count, length, 16, 24, 1), np.uint8)


def seen_together(slots: list[SlotStream], pictures: NDArray[np.uint8]) -> list[Frames]:
    """Push a picture to each stream, so that all are stepped in one call, and return their predictions."""
    for slot, picture in zip(slots, pictures, strict=True):
        slot.push(picture)
    predictions = [slot.snapshot().prediction for slot in slots]
    return [prediction for prediction in predictions if prediction is not None]


def test_what_neighbours_see_changes_nothing_bit_for_bit(predictor: Predictor) -> None:
    """Steps have the same number of streams in all runs; neither neighbours nor the row of the stream may matter."""
    mine, theirs, others = clips(1, 1)[0], clips(3, 2), clips(3, 3)
    predictions: list[list[Frames]] = []
    for place, neighbours in ((0, theirs), (0, others), (2, others)):
        with predictor.streams(renewal="none", max_wait_ms=1000) as streams:
            slots = [streams.open() for _ in range(4)]
            all_clips = np.insert(neighbours, place, mine, axis=0)
            predictions.append([seen_together(slots, all_clips[:, t])[place] for t in range(len(mine))])
            assert streams.stats()["batch_sizes"][4] == len(mine)
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(predictions[0], predictions[2])


def test_streams_of_different_age_give_what_each_gives_alone(predictor: Predictor) -> None:
    """Forecasts agree only within rounding, because the number of streams per step grows from one to four."""
    pictures = clips(4, 4)
    slots: list[SlotStream] = []
    with predictor.streams(renewal="none", max_wait_ms=1000) as streams:
        for t in range(9):
            if len(slots) < 4:
                slots.append(streams.open())
            seen_together(slots, pictures[: len(slots), t])
        futures = [asked(slot, 3) for slot in slots]
        forecasts = [future.result() for future in futures]
        assert {size for size, count in streams.stats()["batch_sizes"].items() if count} == {1, 2, 4}
    for number, forecast in enumerate(forecasts):
        stream = predictor.stream(renewal="none")
        for picture in pictures[number, number:]:
            stream.push(picture)
        np.testing.assert_allclose(forecast, stream.forecast(3), rtol=0, atol=OTHER_SIZE)


@pytest.mark.parametrize("event", ["reset", "restore", "forecast", "reopen", "fail"])
def test_what_happens_to_one_stream_touches_no_other_bit_for_bit(
    predictor: Predictor, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps have the same number of streams in both runs: the affected stream takes part in the next step again."""
    pictures = clips(4, 5)

    def run(happens: bool) -> list[list[Frames]]:
        with predictor.streams(renewal="none", max_wait_ms=1000) as streams:
            slots = [streams.open() for _ in range(4)]
            start = slots[0].snapshot()
            predictions = []
            for t in range(9):
                predictions.append(seen_together(slots, pictures[:, t])[1:])
                if t == 5 and happens:
                    match event:
                        case "reset":
                            slots[0].reset()
                        case "restore":
                            slots[0].restore(start)
                        case "forecast":
                            slots[0].predict(5)
                        case "reopen":
                            slots[0].close()
                            slots[0] = streams.open()
                        case "fail":
                            fail(slots[0])
            return predictions

    def fail(slot: SlotStream) -> None:
        def broken(*_: object) -> Any:
            raise RuntimeError("no")

        with monkeypatch.context() as patch:
            patch.setattr(predictor.backend, "step", broken)
            with pytest.raises(StreamError, match="forecast frame 1: no"):
                slot.predict(2)
        slot.reset()

    np.testing.assert_array_equal(run(False), run(True))


def test_hundreds_of_streams_opened_and_closed_leave_nothing(predictor: Predictor) -> None:
    pictures = clips(1)[0]

    def states() -> int:
        return sum(type(one) is HostState for one in gc.get_objects())

    with predictor.streams(renewal="none", max_streams=8, max_wait_ms=0) as streams:

        def open_and_close(count: int) -> None:
            for _ in range(count):
                slots = [streams.open() for _ in range(3)]
                for slot in slots:
                    slot.push(pictures[0])
                slots[0].predict(2)
                for slot in slots:
                    slot.close()
            streams.open().wait()
            for stream in list(streams.scheduler.queues.streams):
                streams.scheduler.end(stream)
            last = streams.open()
            last.wait()
            last.wait()  # The round after the first call frees the states of closed streams.

        open_and_close(40)
        gc.collect()
        before = states()
        tracemalloc.start()
        start, _ = tracemalloc.get_traced_memory()
        open_and_close(60)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - start
        tracemalloc.stop()
        assert states() <= before
        assert grown < LEFT_BYTES


def test_the_code_in_the_documentation_runs(
    any_batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs/runtime.md").read_text()
    marked = "<!-- run by tests/runtime/streams/test_streams_isolated.py -->\n```python\n(.*?)```"
    many, asynchronous = re.findall(marked, text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"cameras": list(clips(3))}
    exec(many.replace("demo.e3d", str(any_batch)), names)
    assert [forecast.shape for forecast in names["forecasts"]] == [(10, 16, 24, 1)] * 3
    assert "'p99'" in capsys.readouterr().out
    exec(asynchronous, names)
    with runtime.load(any_batch, "onnxruntime") as predictor, predictor.streams(renewal="none") as streams:
        one, other = streams.open(), streams.open()
        for stream in (one, other):
            stream.push(clips(1)[0, 0])
        both = asyncio.run(names["forecast_both"](one, other))
    assert [forecast.shape for forecast in both] == [(10, 16, 24, 1)] * 2
