"""Form in which readers give frames. Needs no PyTorch."""

from dataclasses import dataclass

from e3d_deploy.card import Card
from e3d_deploy.config import Fit, ModelConfig
from e3d_deploy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Form:
    """Form of the frames that a model takes.

    Raises:
        ConfigError: a size that no picture has.
    """

    image_size: tuple[int, int]
    """Height and width (pixels)."""
    channels: int
    """Colours: 1 for gray, 3 for RGB."""
    fit: Fit = "stretch"
    """Way in which pictures of another shape are brought to the size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(f"image_size: got {self.image_size}, expected height and width in pixels, such as 64x64")

    @classmethod
    def of(cls, config: ModelConfig, card: Card) -> "Form":
        """Return the form of a model's frames, as it was trained on them."""
        return cls(image_size=config.image_size, channels=config.channels, fit=card.fit)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a picture, [H, W, C]."""
        return (*self.image_size, self.channels)
