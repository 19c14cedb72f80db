"""Blocks whose pictures and forecasts are stepped together once they end."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime import Predictor
from tests.fake_backend import FakeBackend, alone, picture, pushed


def test_pictures_of_a_block_are_stepped_together_and_wait_for_no_other_stream(
    backend: FakeBackend, predictor: Predictor
) -> None:
    with predictor.streams(max_wait_ms=0) as streams:
        slots = [streams.open() for _ in range(8)]
        with streams.together():
            for slot in slots[:4]:
                slot.push(picture(10))
                time.sleep(0.01)  # Without the block, the first picture would be stepped now.
            assert backend.calls == []
        for slot in slots[:4]:
            slot.wait()
        assert backend.calls == [4]


def test_forecasts_requested_in_a_block_are_stepped_together(backend: FakeBackend, predictor: Predictor) -> None:
    async def run() -> list[NDArray[Any]]:
        with streams.together():
            for value, slot in enumerate(slots):
                slot.push(picture(value))
            answers = [slot.forecast_async(3) for slot in slots] + [slots[0].predict_async(1)]
        return list(await asyncio.gather(*answers))

    with predictor.streams(max_wait_ms=0) as streams:
        slots = [streams.open() for _ in range(4)]
        *forecasts, pictures = asyncio.run(run())
        assert backend.calls == [4, 4, 4], "a step for the pictures and two for the forecasts"
        for value, forecast in enumerate(forecasts):
            np.testing.assert_array_equal(forecast, alone([value], 3))
        np.testing.assert_array_equal(pictures, slots[0].predict(1))


def test_a_call_that_waits_inside_a_block_still_returns(predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=0, queue_length=1) as streams, streams.together():
        stream = pushed(streams.open(), 1, 2, 3)  # The second push waits for room.
        np.testing.assert_array_equal(stream.forecast(2), alone([1, 2, 3], 2))


def test_closed_streams_offer_no_block(predictor: Predictor) -> None:
    streams = predictor.streams()
    streams.close()
    with pytest.raises(StreamError, match="used after it was closed"), streams.together():
        pass
