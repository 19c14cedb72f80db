"""Times at which the pictures of a recording are due."""

HURRY_S = 0.5
"""Longest delay that is made up for by pictures in quick succession (s)."""


class Schedule:
    """Times at which the pictures of a recording are due when it plays at its own rate.

    After a longer delay than `HURRY_S`, as of a viewer who paused, it goes on at the rate.
    """

    def __init__(self) -> None:
        self._began_s: float | None = None

    def wait_s(self, time_s: float, now_s: float) -> float:
        """Return the time to wait before a picture is given (s), 0 where it is late.

        Args:
            time_s: time of the picture by the recording's own clock (s).
            now_s: time by a clock that never goes back (s).
        """
        if self._began_s is None or now_s - (self._began_s + time_s) > HURRY_S:
            self._began_s = now_s - time_s
        return max(0.0, self._began_s + time_s - now_s)
