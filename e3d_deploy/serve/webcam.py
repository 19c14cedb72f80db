"""Source of the webcam pictures that a viewer sends."""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.live.bounded_queue import BoundedQueue
from e3d_deploy.data.live.feed import Arrival


class Webcam:
    """Pictures that a viewer sends over the WebSocket. Only the newest one is queued; older pictures are dropped."""

    frames_per_second: float | None = None
    is_live = True

    def __init__(self) -> None:
        self._waiting: BoundedQueue[Arrival] = BoundedQueue(1, drop_oldest=True)
        self._received, self._begins_video = 0, True

    @property
    def dropped(self) -> int:
        """Number of pictures that were dropped because a newer picture arrived."""
        return self._waiting.dropped

    def put(self, picture: NDArray[np.uint8]) -> None:
        """Queue a picture, uint8 [H, W, C], in place of a picture that still waits."""
        arrived_s = time.perf_counter()
        self._waiting.put(
            Arrival(picture=picture, index=self._received, time_s=None, arrived_s=arrived_s, begins_video=False)
        )
        self._received += 1

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; return None if no picture arrives before the timeout.

        Raises:
            Ended: the webcam is closed.
        """
        arrival = self._waiting.take(timeout_s)
        if arrival is None:
            return None
        # The first picture that is taken begins the video, even if earlier pictures were dropped.
        begins_video, self._begins_video = self._begins_video, False
        return replace(arrival, begins_video=begins_video)

    def close(self) -> None:
        """Drop the queued picture, and ignore further pictures."""
        self._waiting.close()
