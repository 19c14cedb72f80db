"""Settings, and the model and frames that the rows of one process share."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM

FULL = ModelConfig()
TINY = ModelConfig(image_size=(16, 24), patch_size=4, hidden=(4, 6), kernel_size=3, history_length=4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run."""

    device: str = "cuda"
    """`cuda` or `cpu`."""
    quick: bool = False
    """True for few and short rounds; on a CPU also for the tiny model."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Numbers of streams that are stepped together."""
    bundles: Path | None = None
    """Folder with bundles for the section `bundles`; None skips the section."""

    @property
    def on_gpu(self) -> bool:
        """True if the device is a GPU."""
        return self.device == "cuda"

    @property
    def config(self) -> ModelConfig:
        """Configuration of the measured model."""
        return TINY if self.quick and not self.on_gpu else FULL

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"bundles": str(self.bundles.absolute()) if self.bundles else None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Settings":
        """Read the result of `to_dict`."""
        bundles = Path(fields["bundles"]) if fields["bundles"] else None
        return cls(**fields | {"batches": tuple(fields["batches"]), "bundles": bundles})


class Bench:
    """Settings, model and inputs that the rows of one process share.

    Args:
        model: model to measure; None for one with random weights.
    """

    def __init__(self, settings: Settings, model: E3DLSTM | None = None) -> None:
        self.settings, self.given = settings, model
        self.device, self.on_gpu, self.quick = torch.device(settings.device), settings.on_gpu, settings.quick
        self.config = model.config if model else settings.config
        self.rounds, self.block_s = (2, 0.02) if settings.quick else (5, 0.15)

    @cached_property
    def model(self) -> E3DLSTM:
        """Model on the device.

        It is made at first use, because the parent process only plans rows and must not use the GPU.
        """
        torch.manual_seed(0)
        model = self.given or E3DLSTM(self.config)
        return model.eval().requires_grad_(False).to(self.device)

    def copy_of_model(self) -> E3DLSTM:
        """Return a copy of the model whose weights can be changed."""
        copy = E3DLSTM(self.config).eval().requires_grad_(False).to(self.device)
        copy.load_state_dict(self.model.state_dict())
        return copy

    def pictures(self, batch: int, count: int) -> np.ndarray:
        """Return random pictures, uint8 [count, B, H, W, C]; equal arguments yield equal pictures."""
        shape = (count, batch, *self.config.image_size, self.config.channels)
        return np.random.default_rng(batch).integers(0, 256, shape, np.uint8)

    def frames(self, batch: int, count: int) -> Tensor:
        """Return the pictures of `pictures` as frames on the device, [count, B, C, H, W]."""
        shown = torch.from_numpy(self.pictures(batch, count)).to(self.device)
        return shown.permute(0, 1, 4, 2, 3).contiguous().float() / 255

    def wait(self) -> None:
        """Wait until the GPU has finished."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Return unused memory to the GPU."""
        if self.on_gpu:
            torch.cuda.empty_cache()
