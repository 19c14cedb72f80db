"""Sources that are open, and the pictures that they give."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedPicture:
    """Picture that a source gave."""

    picture: NDArray[np.uint8]
    """[H, W, C], as the model takes it."""
    time_s: float | None
    """Time by the source's own clock (s); None where it tells none."""
    came_s: float
    """Value of `time.perf_counter()` when it was decoded."""
    section: int
    """Number of the section; a new one begins with each connection and each size, and nothing leads to its first."""


class Source(Protocol):
    """Source that is open."""

    @property
    def rate(self) -> float | None:
        """Pictures per second; None where it tells none."""

    @property
    def is_live(self) -> bool:
        """True if it waits for nobody."""

    @property
    def reconnects(self) -> int:
        """Number of times it was opened again."""

    def pictures(self) -> Iterator[DecodedPicture]:
        """Yield the pictures until the source ends or is closed.

        Raises:
            E3DError: it cannot be read any further.
        """

    def close(self) -> None:
        """Let `pictures` end soon, from another thread."""
