"""Configuration of a network (ModelConfig), its training (TrainConfig) and its TensorRT engines (EngineConfig)."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Literal, get_args

from e3d_deploy.errors import ConfigError

Semantics = Literal["paper", "google", "openstl"]
Fit = Literal["stretch", "crop", "pad"]
"""Methods that fit a picture with a different aspect ratio to a frame: stretch it, crop it, or pad it with black."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a network, and the implementation of E3D-LSTM that it follows.

    Raises:
        ConfigError: A value is invalid.
    """

    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame (pixels)."""
    channels: int = 1
    """Channels of a frame: 1 for gray, 3 for RGB."""
    patch_size: int = 4
    """Side of the squares that are folded into channels (pixels); must divide height and width."""
    hidden: tuple[int, ...] = (64, 64, 64, 64)
    """Hidden channels of each layer, from bottom to top."""
    kernel_size: int = 5
    """Height and width of the convolution kernels (patches); odd. The depth of the kernels is always 2."""
    window_length: int = 2
    """Frames in the window of the 3D convolutions; at least 2."""
    history_length: int = 20
    """Cell states kept for recall, including the initial zero state (τ in the paper). For this number of steps the
    result equals the result with an unlimited history; after that, only the latest states are recalled."""
    layer_norm: bool = True
    """Normalise the gates. The cell state is always normalised, because it could double at each step otherwise."""
    norm_eps: float = 1e-5
    """Constant added to the variance in every norm. The released TensorFlow code uses 1e-12; see docs/model.md."""
    semantics: Semantics = "paper"
    """Implementation that the network follows. `paper`: each cell updates the global memory. `google`: cells return the
    memory unchanged, as in the released TensorFlow code, so the memory is always zero. `openstl`: OpenSTL's port."""
    stride: int = 1
    """Stride of the convolutions (patches); nearest upsampling restores the grid. Must be 1 except with `openstl`."""

    FIRST: ClassVar[str] = (
        "image_size channels patch_size hidden kernel_size window_length history_length layer_norm norm_eps semantics "
        "stride"
    )
    """Names of the fields that are always written. Other fields are written only if they differ from their defaults, so
    that older versions can read the file and the hash of a config does not change. New fields are not added here."""

    def __post_init__(self) -> None:
        for name in ("image_size", "hidden"):
            sizes = getattr(self, name)
            if not isinstance(sizes, list | tuple):  # JSON has lists but no tuples
                raise ConfigError(f"{name}: got {sizes!r}, expected a list of whole numbers")
            for size in sizes:
                _check_whole(name, size)
            object.__setattr__(self, name, tuple(sizes))
        for name in ("channels", "patch_size", "kernel_size", "window_length", "history_length", "stride"):
            _check_whole(name, getattr(self, name))
        if not isinstance(self.layer_norm, bool):
            raise ConfigError(f"layer_norm: got {self.layer_norm!r}, expected true or false")
        if len(self.image_size) != 2 or any(side < 1 for side in self.image_size):
            raise ConfigError(f"image_size: got {self.image_size}, expected height and width in pixels, such as 64x64")
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
        if type(self.norm_eps) not in (float, int) or not 0 < self.norm_eps < math.inf:
            raise ConfigError(f"norm_eps: got {self.norm_eps!r}, expected more than 0")
        if self.semantics not in get_args(Semantics):
            raise ConfigError(f"semantics: got {self.semantics!r}, expected one of {', '.join(get_args(Semantics))}")
        if self.stride < 1 or (self.stride > 1 and self.semantics != "openstl"):
            raise ConfigError(f"stride: got {self.stride}, expected 1; a larger stride needs the semantics openstl")
        if self.semantics == "openstl" and self.window_length != 2:
            raise ConfigError(f"window_length: got {self.window_length}, expected 2 with the semantics openstl")
        if self.semantics == "openstl" and len(set(self.hidden)) > 1:
            raise ConfigError(
                f"hidden: got {self.hidden}, expected equal sizes with the semantics openstl, "
                "where all layers share one memory"
            )

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
        """Number of positions in a cell state, D·h·w: frames in the window times patches in the grid."""
        height, width = self.grid_size
        return self.window_length * height * width

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Channels of the global memory that each layer receives.

        With `paper` semantics, the bottom layer receives the memory of the top layer at the previous step, and each
        other layer the memory of the layer below. With `google` or `openstl`, all layers receive that of the top layer.
        """
        if self.semantics != "paper":
            return (self.hidden[-1],) * len(self.hidden)
        return (self.hidden[-1], *self.hidden[:-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; a field outside `FIRST` is omitted if it has its default."""
        return _to_dict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Create a config from the JSON values that `to_dict` returned.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        if not isinstance(fields, dict):
            raise ConfigError(f"config: got {fields!r}, expected fields and values")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(
                f"config: unknown field {', '.join(unknown)}, written by a newer e3d_deploy; update e3d_deploy"
            )
        if missing := [name for name in cls.FIRST.split() if name not in fields]:
            raise ConfigError(f"config: lacks {', '.join(missing)}; the file is damaged, make it again")
        return cls(**fields)


def _to_dict(config: "ModelConfig | TrainConfig | EngineConfig") -> dict[str, Any]:
    """Return the fields of a config as JSON values; a field outside `FIRST` is omitted if it has its default."""
    always = config.FIRST.split()
    written = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in always or getattr(config, field.name) != field.default
    }
    return json.loads(json.dumps(written))  # type: ignore[no-any-return]


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected a whole number")


def _check_type(name: str, kind: Any, value: object) -> None:
    """Check a number or a flag against the type of its field."""
    kinds = get_args(kind) or (kind,)
    if value is None and NoneType in kinds:
        return
    if int in kinds:
        _check_whole(name, value)
    elif float in kinds and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}, expected a number")
    elif bool in kinds and not isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected true or false")


Loss = Literal["mean", "sum"]
Optimizer = Literal["adamw", "adam", "muon", "released-adam"]
Schedule = Literal["cosine", "onecycle", "constant"]
ScheduleBy = Literal["steps", "time"]
Sampling = Literal["scheduled", "reverse"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run. The defaults are the recipe `modern`; docs/training.md compares the recipes.

    Raises:
        ConfigError: A value is invalid.
    """

    context_length: int = 10
    """Frames in the context, which the network is given."""
    horizon: int = 10
    """Frames in the forecast."""
    steps: int = 80_000
    """Total number of optimizer steps."""
    batch_size: int = 4
    """Clips per optimizer step: the sum over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches into which the clips of an optimizer step are split, to save memory. They are computed one after
    another, and their gradients are added up."""
    loss: Loss = "mean"
    """Loss. `mean`: mean squared difference plus weighted mean absolute difference, over all predicted frames. `sum`:
    half the sum of squares plus the weighted sum of absolute differences over the batch, as in google/e3d_lstm."""
    l1_weight: float = 1.0
    """Weight of the absolute differences in the loss. In short runs, 0 avoids a plateau: all-black frames minimise the
    absolute differences early in training."""
    optimizer: Optimizer = "adamw"
    """Optimizer. `muon` uses orthogonal updates for the convolutions of the cells, and `adamw` for all other weights.
    `released-adam` is the Adam of google/e3d_lstm, with epsilon inside the square root."""
    beta1: float = 0.9
    """Decay of the moving mean of the gradients, per step; `muon` uses 0.95 for the convolutions of the cells."""
    beta2: float = 0.99
    """Decay of the moving mean of the squared gradients, per step."""
    weight_decay: float = 0.01
    """Weight decay (`adamw` and `muon` only)."""
    learning_rate: float = 1e-3
    """Highest learning rate of the schedule."""
    schedule: Schedule = "cosine"
    """Schedule of the learning rate. `cosine`: rises for `warmup_steps`, then falls to 0 along a cosine. `onecycle`:
    PyTorch's OneCycleLR. `constant`: does not change."""
    schedule_by: ScheduleBy = "steps"
    """Progress that learning rate and scheduled sampling follow. `steps`: the number of optimizer steps done. `time`:
    the elapsed share of the time limit; elapsed time / limit × `steps` takes the place of the number of steps
    done. Training ends after `steps` steps even if time is left. Warm-up is always counted in steps."""
    warmup_steps: int = 100
    """Warm-up steps (`cosine` only)."""
    sampling: Sampling = "scheduled"
    """Sampling of the input frames. `scheduled`: the context always consists of true frames; after the context,
    true frames become rarer during training. `reverse`: early in training, predictions replace frames of the context
    too."""
    sampling_start: float = 1.0
    """Initial probability that the input is a true frame and not a prediction (`scheduled` only)."""
    sampling_decrease: float | None = None
    """Decrease of the probability of a true frame per step (`scheduled` only); None: the probability reaches 0 at
    `sampling_stop`."""
    sampling_hold_steps: int | None = None
    """Step at which `reverse` begins to change its probabilities; None: half of `sampling_stop`."""
    sampling_stop_step: int | None = None
    """First step whose inputs after the context are all predictions; None: half of the steps."""
    sampling_decay_steps: float = 5000.0
    """Time constant of the exponential change of the probabilities (`reverse` only; steps)."""
    reverse_input: bool = False
    """After each optimizer step, make another one on the same clips played backwards."""
    ema_decay: float = 0.9995
    """Decay of the moving average of the weights, per step."""
    ema_warmup: bool = True
    """Use the decay (1 + step) / (10 + step) while it is less than `ema_decay`, so that the initial weights do not
    dominate the average of a short run."""
    average: bool = True
    """Validate and save the moving average of the weights instead of the weights."""
    gradient_clip: float = 0.0
    """Maximum norm of all gradients together; 0 disables clipping."""
    precision: Precision = "auto"
    """Precision of training. `bf16`: autocast. `auto`: bf16 on a GPU that supports it, otherwise fp32."""
    recompute: bool = False
    """Use activation checkpointing over time: less memory, about a third more computation."""
    compile: bool = False
    """Compile the cells with torch.compile."""
    cuda_graph: bool = False
    """Replay each training pass as a CUDA graph (one GPU, without `accumulate`)."""
    validate_every: int = 500
    """Optimizer steps between validations; each validation writes a preview picture."""
    validation_clips: int = 64
    """Clips per validation; 0: all clips."""
    save_every: int = 500
    """Optimizer steps between saved states; a crash loses at most this number of steps."""
    log_every: int = 50
    """Optimizer steps between lines of the log."""
    burn_in: int = 80
    """Maximum number of burn-in frames: frames before the context that advance the state without gradients, so that the
    network learns from old states; 0 disables burn-in. `training.batches.draw_burn_in` draws the number for each
    optimizer step."""
    burn_in_steps: int | None = None
    """Number of steps with burn-in, at the end of training; None: a tenth of the steps, rounded down. If the schedule
    follows time, burn-in begins at the same share of the time."""
    fit: Fit = "stretch"
    """Method that fits pictures with a different aspect ratio to the size of a frame: `stretch`, `crop` or `pad`."""
    layout: str | None = None
    """Axes of the training arrays, such as NTHW; None: inferred from their shapes."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, the sampling and the burn-in."""

    FIRST: ClassVar[str] = (
        "context_length horizon steps batch_size accumulate loss l1_weight optimizer beta1 beta2 weight_decay "
        "learning_rate schedule warmup_steps sampling sampling_start sampling_decrease sampling_hold_steps "
        "sampling_stop_step sampling_decay_steps reverse_input ema_decay ema_warmup average gradient_clip precision "
        "recompute compile validate_every validation_clips save_every log_every burn_in seed"
    )
    """Names of the fields that are always written, as in `ModelConfig`. `burn_in` was added later, but it is
    listed, because settings without it mean 0, which is not the default."""

    def __post_init__(self) -> None:
        at_least_1 = ("context_length", "horizon", "steps", "batch_size", "accumulate")
        for field in dataclasses.fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        for name in (*at_least_1, "validate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        at_least_0 = ("warmup_steps", "l1_weight", "gradient_clip", "weight_decay", "validation_clips", "seed")
        for name in (*at_least_0, "sampling_stop_step", "sampling_hold_steps", "burn_in", "burn_in_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name}: got {value}, expected 0 or more")
        if not 0 <= self.sampling_start <= 1:
            raise ConfigError(f"sampling_start: got {self.sampling_start}, expected a probability from 0 to 1")
        for name in ("ema_decay", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 0 or more and less than 1")
        for name in ("learning_rate", "sampling_decay_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected more than 0")
        kinds = {"loss": Loss, "optimizer": Optimizer, "schedule": Schedule, "sampling": Sampling}
        for name, kind in {**kinds, "schedule_by": ScheduleBy, "precision": Precision, "fit": Fit}.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}")
        if self.cuda_graph and self.accumulate > 1:
            raise ConfigError(
                f"cuda_graph: cannot add up gradients of {self.accumulate} micro-batches; set accumulate to 1"
            )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate: got {self.accumulate}, expected a divisor of the batch size, {self.batch_size} clips"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; a field outside `FIRST` is omitted if it has its default."""
        return _to_dict(self)

    @classmethod
    def of_recipe(cls, recipe: str, **changes: Any) -> "TrainConfig":
        """Return the settings of a recipe, with some fields changed.

        Raises:
            ConfigError: The recipe is unknown, or a value is invalid.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"recipe: got {recipe!r}, expected one of {', '.join(RECIPES)}")
        return cls(**{**RECIPES[recipe], **changes})

    @property
    def clip_length(self) -> int:
        """Frames of a training clip, T."""
        return self.context_length + self.horizon

    @property
    def sampling_stop(self) -> int:
        """First step whose inputs after the context are all predictions: `sampling_stop_step`, or half of the steps."""
        return self.steps // 2 if self.sampling_stop_step is None else self.sampling_stop_step

    @property
    def burn_in_start(self) -> int | None:
        """First step with burn-in, counted from 0; None without burn-in."""
        last = self.steps // 10 if self.burn_in_steps is None else self.burn_in_steps
        return max(0, self.steps - last) if self.burn_in and last else None


RECIPES: dict[str, dict[str, Any]] = {
    "modern": {},
    "google": {
        "loss": "sum",
        "optimizer": "released-adam",
        "beta1": 0.95,
        "beta2": 0.9995,
        "schedule": "constant",
        "sampling_decrease": 2e-5,
        "sampling_stop_step": 50_000,
        "ema_warmup": False,
        "average": False,
        "precision": "fp32",
        "burn_in": 0,
    },
    "openstl": {
        "optimizer": "adam",
        "beta2": 0.999,
        "learning_rate": 1e-4,
        "schedule": "onecycle",
        "batch_size": 16,
        "sampling": "reverse",
        "sampling_hold_steps": 25_000,
        "sampling_stop_step": 50_000,
        "average": False,
        "precision": "fp32",
        "burn_in": 0,
    },
}
"""Settings of each recipe that differ from the defaults.

Sources: google/e3d_lstm run.py and src/models/model_factory.py; OpenSTL configs/mmnist/E3DLSTM.py, with reverse
scheduled sampling, which OpenSTL disables in that file.
"""


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": (16, 16), "patch_size": 8, "steps": 500, "batch_size": 4},
    "small": {"hidden": (32, 32, 32), "patch_size": 8, "steps": 3000, "batch_size": 4},
    "full": {},
}
"""Sizes of network and training by name, as fields of `ModelConfig` and `TrainConfig`. `full` changes nothing.
docs/training.md lists the training times."""


HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options for building TensorRT engines; docs/engines.md describes their effect in each library.

    Raises:
        ConfigError: A value is invalid.
    """

    workspace_bytes: int | None = None
    """Maximum scratch memory for kernels (bytes); None: no limit."""
    optimization_level: int = 3
    """Effort of the builder: 0 builds fastest, 5 builds the fastest engine."""
    batches: tuple[tuple[int, int, int], ...] = ()
    """Buckets, (fewest, usual, most) streams per call; an engine has one optimization profile per bucket. Only for
    graphs that accept any batch size. Empty: one stream, and for the step graph also two."""
    compute_capabilities: tuple[str, ...] = ()
    """Compute capabilities that a TensorRT-RTX engine supports, such as 8.6; empty: all that the library supports."""
    hardware_compatibility: HardwareCompatibility = "none"
    """GPUs that run a TensorRT engine, in addition to the GPU that built it."""
    version_compatible: bool = False
    """Allow later versions of TensorRT to run the engine."""
    refittable: bool = False
    """Allow `e3d refit` to replace the weights of the engine."""
    timing_cache: str | None = None
    """File of kernel timings that later builds on the same GPU reuse; not part of the engine's key in the cache."""

    FIRST: ClassVar[str] = (
        "workspace_bytes optimization_level batches compute_capabilities hardware_compatibility version_compatible "
        "refittable timing_cache"
    )
    """Names of the fields that are always written, as in `ModelConfig`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", tuple(tuple(bucket) for bucket in self.batches))
        object.__setattr__(self, "compute_capabilities", tuple(self.compute_capabilities))
        if self.workspace_bytes is not None:
            _check_whole("workspace_bytes", self.workspace_bytes)
            if not 1 <= self.workspace_bytes < 2**63:  # the libraries store it as int64
                raise ConfigError(f"workspace_bytes: got {self.workspace_bytes}, expected 1 to {2**63 - 1}")
        if self.optimization_level not in range(6):
            raise ConfigError(f"optimization_level: got {self.optimization_level}, expected 0 to 5")
        for bucket in self.batches:
            if len(bucket) != 3 or not 1 <= bucket[0] <= bucket[1] <= bucket[2]:
                raise ConfigError(
                    f"batches: got {bucket}, expected the fewest, the usual and the most streams, ascending from 1"
                )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise ConfigError(f"compute_capabilities: got {capability!r}, expected one such as 8.6")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            known = ", ".join(get_args(HardwareCompatibility))
            raise ConfigError(f"hardware_compatibility: got {self.hardware_compatibility!r}, expected one of {known}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; a field outside `FIRST` is omitted if it has its default."""
        return _to_dict(self)
