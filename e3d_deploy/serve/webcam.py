"""Pictures that a viewer sends: the same interface as a `Feed`."""

import threading
import time
from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.live.feed import Arrival

WAITING = 2
"""Pictures that may wait; the oldest gives way, as a webcam does not stop."""


class Source(Protocol):
    """Pictures of a session, as a `Feed` gives them."""

    @property
    def dropped(self) -> int: ...

    @property
    def frames_per_second(self) -> float | None: ...

    @property
    def is_live(self) -> bool: ...

    def take(self, timeout_s: float | None = None) -> Arrival | None: ...

    def close(self) -> None: ...


class Webcam:
    """Pictures that a viewer sends over the WebSocket."""

    frames_per_second: float | None = None
    is_live = True

    def __init__(self) -> None:
        self.dropped = 0
        self._came = 0
        self._waiting: deque[Arrival] = deque()
        self._filled = threading.Condition()

    def put(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture [H, W, C]."""
        with self._filled:
            if len(self._waiting) == WAITING:
                self._waiting.popleft()
                self.dropped += 1
            first = self._came == 0
            now_s = time.perf_counter()
            self._waiting.append(Arrival(picture=picture, index=self._came, time_s=None, came_s=now_s, begins=first))
            self._came += 1
            self._filled.notify()

    def take(self, timeout_s: float | None = None) -> Arrival | None:
        """Return the next picture; None if none comes in time."""
        with self._filled:
            self._filled.wait_for(lambda: self._waiting, timeout_s)
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Forget what waits."""
        with self._filled:
            self._waiting.clear()
