"""Size, colours and axes of the frames that readers return. Needs no PyTorch."""

from dataclasses import dataclass

from e3d_deploy.card import Card
from e3d_deploy.config import Fit, ModelConfig
from e3d_deploy.errors import ConfigError

LAYOUTS = ("THW", "THWC", "TCHW", "NTHW", "TNHW", "NTHWC", "NTCHW", "TNHWC", "TNCHW")
"""Supported orders of the axes of an array: N clips, T frames, C colours, H and W pixels."""
MAX_PIXELS = 8192**2
"""Maximum size of a video frame (pixels), because decoders allocate its memory before anything else can be checked."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Size, colours and fit of the frames that a model takes, and the layout of arrays.

    Raises:
        ConfigError: `image_size` is not two numbers of at least 1, or `layout` is unknown.
    """

    image_size: tuple[int, int]
    """Height and width of a frame (pixels)."""
    channels: int
    """Number of colours: 1 for gray, 3 for RGB."""
    fit: Fit = "stretch"
    """Method that fits pictures to a frame of a different aspect ratio: `stretch`, `crop` or `pad`."""
    layout: str | None = None
    """Axes of arrays, one of LAYOUTS; B is accepted instead of N. None: found for each array."""

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
        """Return the form of the frames that a model was trained on, with the layout of arrays if one is given."""
        return cls(image_size=config.image_size, channels=config.channels, fit=card.fit, layout=layout)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a picture, [H, W, C]."""
        return (*self.image_size, self.channels)
