"""ModelConfig: everything that fixes what a network computes."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from e3d_deploy.errors import ConfigError

Semantics = Literal["paper", "google"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the network's tensors and which E3D-LSTM it is.

    Raises:
        ConfigError: a value that no network can have.
    """

    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame, pixels."""
    channels: int = 1
    """Colours of a frame: 1 for gray, 3 for RGB."""
    patch_size: int = 4
    """Side of the square folded into channels, pixels; divides both sides of the frame."""
    hidden: tuple[int, ...] = (64, 64, 64, 64)
    """Hidden channels of each layer, bottom first."""
    kernel_size: int = 5
    """Spatial side of the convolutions, patches; odd. Their depth is always 2."""
    window_length: int = 2
    """Frames in the window that the 3D convolutions see, at least 2."""
    history_length: int = 20
    """Cell states kept for recall, the zero state at the start among them, steps (τ in the paper).
    Exact, that is equal to a history that grows for ever, for as many steps; then the last ones."""
    layer_norm: bool = True
    """Normalise the gates. The norm of the cell stays either way: without it the cell doubles at each step."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm. The released TensorFlow code uses 1e-12; see docs/model.md."""
    semantics: Semantics = "paper"
    """`paper`: the global memory moves. `google`: a cell returns the memory it was given, as the
    released TensorFlow code does, so that it stays zero for ever."""

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("channels", "patch_size", "kernel_size", "window_length", "history_length"):
            _whole(name, getattr(self, name))
        for size in (*self.image_size, *self.hidden):
            _whole("image_size, hidden", size)
        if len(self.image_size) != 2 or any(side < 1 for side in self.image_size):
            raise ConfigError(f"image_size: got {self.image_size}, expected height and width in pixels")
        if self.patch_size < 1 or any(side % self.patch_size for side in self.image_size):
            raise ConfigError(
                f"patch_size: {self.patch_size} does not divide the frame of {self.image_size} pixels; "
                "choose a common divisor of both sides"
            )
        if not self.hidden or any(size < 1 for size in self.hidden):
            raise ConfigError(f"hidden: got {self.hidden}, expected at least one layer, each of 1 channel or more")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size: got {self.kernel_size}, expected an odd number")
        if self.channels < 1:
            raise ConfigError(f"channels: got {self.channels}, expected 1 or more")
        if self.window_length < 2:
            raise ConfigError(f"window_length: got {self.window_length}, expected 2 or more")
        if self.history_length < 1:
            raise ConfigError(f"history_length: got {self.history_length}, expected 1 or more")
        if not self.norm_eps > 0:
            raise ConfigError(f"norm_eps: got {self.norm_eps}, expected more than 0")
        if self.semantics not in get_args(Semantics):
            raise ConfigError(f"semantics: got {self.semantics!r}, expected one of {', '.join(get_args(Semantics))}")

    @property
    def patch_channels(self) -> int:
        """Channels of a patched frame, P = C·p²."""
        return self.channels * self.patch_size**2

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the patch grid, (h, w)."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def positions(self) -> int:
        """Positions of a cell state, which are its keys for recall, D·h·w."""
        height, width = self.grid_size
        return self.window_length * height * width

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Channels of the global memory that each layer receives.

        It comes from the layer below, at the bottom from the top layer one step earlier. A memory
        that stays zero is the top layer's everywhere.
        """
        if self.semantics == "google":
            return (self.hidden[-1],) * len(self.hidden)
        return (self.hidden[-1], *self.hidden[:-1])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The config from `to_dict`.

        Raises:
            ConfigError: a field that is unknown here, or of the wrong kind.
        """
        if not isinstance(fields, dict):
            raise ConfigError(f"config: got {fields!r}, expected fields and values")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(
                f"config: unknown field {', '.join(unknown)}; made by a newer e3d_deploy? update this one"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"config: {error}") from error


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected a whole number")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network learns.

    Raises:
        ConfigError: a value with which nothing can be learned.
    """

    context_length: int = 10
    """Frames given."""
    horizon: int = 10
    """Frames predicted."""
    steps: int = 80_000
    """Optimiser steps in all."""
    batch_size: int = 4
    """Clips in an optimiser step."""
    learning_rate: float = 1e-3
    """At its highest; it rises for `warmup_steps` and falls along a cosine to 0."""
    warmup_steps: int = 100
    """Optimiser steps."""
    l1_weight: float = 1.0
    """Loss per clip = half the sum of squares + this times the sum of absolute differences, over all
    predicted frames; 1 in the released code. With few steps to learn in, 0 avoids the plateau where
    an all-black frame is the best answer to the absolute difference."""
    sampling_start: float = 1.0
    """Chance at step 0 that a true frame is shown in place of the prediction."""
    sampling_stop_step: int = 50_000
    """Optimiser step from which on no true frame is shown after the context."""
    ema_decay: float = 0.9995
    """Decay per step of the moving average of the weights, which is what gets saved."""
    gradient_clip: float = 0.0
    """Largest norm of all gradients together; 0 leaves them alone."""
    steps_per_epoch: int = 500
    """Optimiser steps between validations and checkpoints."""
    seed: int = 0
    """Decides initial weights, data and sampling."""

    def __post_init__(self) -> None:
        for name in ("context_length", "horizon", "steps", "batch_size", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        for name in ("warmup_steps", "sampling_stop_step", "l1_weight", "gradient_clip", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.sampling_start <= 1:
            raise ConfigError(f"sampling_start: got {self.sampling_start}, expected a chance from 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: got {self.ema_decay}, expected 0 or more and less than 1")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: got {self.learning_rate}, expected more than 0")

    @property
    def clip_length(self) -> int:
        """Frames of a training clip, T."""
        return self.context_length + self.horizon
