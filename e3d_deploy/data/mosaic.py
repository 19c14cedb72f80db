"""Pictures that show several clips at once, or forecasts next to the truth."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from e3d_deploy.frames import Frames

GAP = 1
"""Width of the gray line between two frames of a picture (pixels of a frame)."""
GRAY = 0.5


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Positions of clips in one picture: in rows that are filled from the left, so that the picture is about square.

    With `compared`, a clip is three frames wide: truth, forecast and their absolute difference.
    """

    clips: int
    image_size: tuple[int, int]
    """Height and width of a frame (pixels)."""
    compared: bool = False
    """True if truth and difference are shown next to the forecast."""

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of the area that shows one clip (pixels of a frame)."""
        height, width = self.image_size
        return height, 3 * width + 2 * GAP if self.compared else width

    @property
    def columns(self) -> int:
        """Number of clips in a row: the smallest for which the picture is not higher than wide."""
        height, width = self.cell
        return min(self.clips, math.ceil(math.sqrt(self.clips * height / width)))

    @property
    def rows(self) -> int:
        return math.ceil(self.clips / self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture (pixels of a frame)."""
        height, width = self.cell
        return self.rows * (height + GAP) - GAP, self.columns * (width + GAP) - GAP

    def play(self, forecast: Frames, truth: Frames | None) -> Iterator[Frames]:
        """Yield one picture, float32 in [0, 1], [C, H, W], for each frame of the clips.

        Args:
            forecast: the clips, [B, T, C, H, W].
            truth: true frames at the times of the forecast, NaN if a frame is unknown; used only if `compared` is True.
        """
        height, width = self.cell
        for t in range(forecast.shape[1]):
            picture = np.full((forecast.shape[2], *self.size), GRAY, np.float32)
            for number in range(self.clips):
                parts = [forecast[number, t].clip(0, 1)]
                if truth is not None and self.compared:
                    parts = _compared(parts[0], truth[number, t])
                y = number // self.columns * (height + GAP)
                x = number % self.columns * (width + GAP)
                picture[:, y : y + height, x : x + width] = np.concatenate(parts, axis=-1)
            yield picture


def _compared(forecast: Frames, truth: Frames) -> list[Frames]:
    """Return truth, forecast and absolute difference, with lines between them; unknown true frames are gray."""
    line = np.full((*forecast.shape[:2], GAP), GRAY, np.float32)
    return [np.nan_to_num(truth, nan=GRAY), line, forecast, line, np.nan_to_num(np.abs(forecast - truth), nan=GRAY)]
