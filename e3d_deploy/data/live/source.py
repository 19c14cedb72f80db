"""Interface of an open source, and the pictures that it yields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedPicture:
    """Decoded picture of a source, and its times."""

    picture: NDArray[np.uint8]
    """Picture in the size and channels of the model, [H, W, C]."""
    time_s: float | None
    """Timestamp from the clock of the source (s); None if the source provides no timestamp."""
    arrived_s: float
    """Value of `time.perf_counter()` when the picture was decoded (s)."""
    section: int
    """Number of the section, from 0. Each connection and each change of size begins a new section. The first picture of
    a section does not continue the previous picture."""


class Source(Protocol):
    """Interface of an open source."""

    @property
    def rate(self) -> float | None:
        """Selected pictures per second; None if the source states no rate."""

    @property
    def is_live(self) -> bool:
        """True if the source does not wait for its reader."""

    @property
    def reconnects(self) -> int:
        """Number of successful reconnects."""

    def pictures(self) -> Iterator[DecodedPicture]:
        """Yield the pictures until the source ends or is closed.

        Raises:
            E3DError: the source failed.
        """

    def close(self) -> None:
        """Make `pictures` end soon. Any thread may call this method."""
