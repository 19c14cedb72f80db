"""Form in which readers give frames. Needs no PyTorch."""

from dataclasses import dataclass

from e3d_deploy.card import Card
from e3d_deploy.config import Fit, ModelConfig
from e3d_deploy.errors import ConfigError

LAYOUTS = ("THW", "THWC", "TCHW", "NTHW", "TNHW", "NTHWC", "NTCHW", "TNHWC", "TNCHW")
"""Orders of axes that arrays are read in: N clips, T frames, C colours, H and W pixels."""
MOST_PIXELS = 8192**2
"""Largest frame of a video that is decoded (pixels); its memory is taken before anything else can be checked."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Form of the frames that a model takes.

    Raises:
        ConfigError: a size that no picture has, or an unknown layout.
    """

    image_size: tuple[int, int]
    """Height and width (pixels)."""
    channels: int
    """Colours: 1 for gray, 3 for RGB."""
    fit: Fit = "stretch"
    """Way in which pictures of another shape are brought to the size."""
    layout: str | None = None
    """Axes of arrays, one of LAYOUTS, B being N; None: found out by their shapes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(f"image_size: got {self.image_size}, expected height and width in pixels, such as 64x64")
        if self.layout is not None:
            layout = self.layout.upper().replace("B", "N")
            object.__setattr__(self, "layout", layout)
            if layout not in LAYOUTS:
                raise ConfigError(f"layout: got {self.layout!r}, expected one of {', '.join(LAYOUTS)}")

    @classmethod
    def of(cls, config: ModelConfig, card: Card, layout: str | None = None) -> "Form":
        """Return the form of a model's frames, as it was trained on them, and the layout of arrays if it is given."""
        return cls(image_size=config.image_size, channels=config.channels, fit=card.fit, layout=layout)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a picture, [H, W, C]."""
        return (*self.image_size, self.channels)
