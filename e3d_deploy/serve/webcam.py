"""Pictures that a viewer sends: the same interface as a `Feed`."""

import threading
import time

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.live.feed import Arrival


class Webcam:
    """Pictures that a viewer sends over the WebSocket; one may wait, and gives way to the next."""

    frames_per_second: float | None = None
    is_live = True

    def __init__(self) -> None:
        self.dropped = 0
        self._came, self._taken = 0, False
        self._waiting: Arrival | None = None
        self._filled = threading.Condition()

    def put(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture [H, W, C]."""
        with self._filled:
            self.dropped += self._waiting is not None
            # A picture that is the first to be seen begins the video, whichever were dropped before it.
            self._waiting = Arrival(
                picture=picture, index=self._came, time_s=None, came_s=time.perf_counter(), begins=not self._taken
            )
            self._came += 1
            self._filled.notify()

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; None if none comes in time."""
        with self._filled:
            self._filled.wait_for(lambda: self._waiting is not None, timeout_s)
            arrival, self._waiting = self._waiting, None
            self._taken |= arrival is not None
            return arrival

    def close(self) -> None:
        """Forget what waits."""
        with self._filled:
            self._waiting = None
