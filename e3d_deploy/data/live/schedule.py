"""Times at which the pictures of a recording are due when it plays in real time."""

HURRY_S = 0.5
"""Maximum delay that is made up for by playing faster (s)."""


class Schedule:
    """Computes when each picture of a recording is due, at the frame rate of the recording.

    After a delay above `HURRY_S`, such as a pause of the viewer, the recording does not catch up: it continues at its
    frame rate from the current picture.
    """

    def __init__(self) -> None:
        self._began_s: float | None = None

    def wait_s(self, time_s: float, now_s: float) -> float:
        """Return the time until a picture is due (s); 0 if the picture is late.

        Args:
            time_s: time of the picture in the recording (s).
            now_s: current time by a monotonic clock (s).
        """
        if self._began_s is None or now_s - (self._began_s + time_s) > HURRY_S:
            self._began_s = now_s - time_s
        return max(0.0, self._began_s + time_s - now_s)
