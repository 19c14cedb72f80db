"""Pictures that a viewer sends: the same interface as a `Feed`."""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.live.bounded_queue import BoundedQueue
from e3d_deploy.data.live.feed import Arrival


class Webcam:
    """Pictures that a viewer sends over the WebSocket; one may wait, and gives way to the next."""

    frames_per_second: float | None = None
    is_live = True

    def __init__(self) -> None:
        self._waiting: BoundedQueue[Arrival] = BoundedQueue(1, drop_oldest=True)
        self._came, self._begins = 0, True

    @property
    def dropped(self) -> int:
        """Number of pictures that gave way."""
        return self._waiting.dropped

    def put(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture [H, W, C]."""
        came_s = time.perf_counter()
        self._waiting.put(Arrival(picture=picture, index=self._came, time_s=None, came_s=came_s, begins=False))
        self._came += 1

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; None if none comes in time.

        Raises:
            Ended: the webcam is closed.
        """
        arrival = self._waiting.take(timeout_s)
        if arrival is None:
            return None
        # The picture that is seen first begins the video, whichever were dropped before it.
        begins, self._begins = self._begins, False
        return replace(arrival, begins=begins)

    def close(self) -> None:
        """Drop what waits, and take nothing more."""
        self._waiting.close()
