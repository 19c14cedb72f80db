"""Requests whose pictures are queued, and the wait for their answers."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import E3DError, StreamError
from e3d_deploy.runtime import SlotStream
from e3d_deploy.triton.requests import Answer, Request

RESTART = "begin the sequence again with START and the pictures of its context"


@dataclass(frozen=True)
class Pending:
    """Request whose picture is queued."""

    request: Request
    stream: SlotStream
    seen: int
    """Number of pictures that the stream had seen before."""
    prediction: Coroutine[Any, Any, NDArray[np.float32]] | None
    forecast: Coroutine[Any, Any, NDArray[np.uint8]] | None


def failure_of(stream: SlotStream) -> str | None:
    """Return the error that ended a stream; None if it can go on."""
    failure: str | None = stream.stats()["failure"]
    return failure


async def answers_of(begun: Sequence[Pending | E3DError]) -> list[Answer | E3DError]:
    """Wait for the results of all requests; an error stands for itself."""
    return list(await asyncio.gather(*map(_answered, begun)))


async def _answered(pending: Pending | E3DError) -> Answer | E3DError:
    if isinstance(pending, E3DError):
        return pending
    sequence = pending.request.sequence
    try:
        prediction = None if pending.prediction is None else (await pending.prediction)[0]
        forecast = None if pending.forecast is None else await pending.forecast
    except E3DError as error:
        if (failure := failure_of(pending.stream)) is not None:
            return StreamError(f"sequence {sequence}: failed at {failure}; {RESTART}")
        if pending.stream.pushed > pending.seen or not pending.stream.stats()["bad_outputs"]:
            return error
    if pending.stream.pushed == pending.seen:
        return StreamError(
            f"sequence {sequence}: the prediction after this picture is not finite, so the picture is ignored; check "
            "the picture, or export with another precision"
        )
    return Answer(prediction, forecast)
