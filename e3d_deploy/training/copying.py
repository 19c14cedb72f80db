"""Comparison of a trained model with copying the last frame, for the end of a run and the file `result.json`."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from e3d_deploy import checkpoint
from e3d_deploy.config import TrainConfig
from e3d_deploy.files import write_file
from e3d_deploy.training.decay import SHARE, WITH_GRADIENTS

log = logging.getLogger(__name__)

RESULT = "result.json"
"""Name of the file that contains the comparison, in the run folder."""
FEW = 8
"""Minimum number of clips for a meaningful comparison."""
BARELY = 0.95
"""Ratio of the model's error to the error of copying above which the model is called barely better."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Error of a model and of copying the last frame of the context, on the same validation clips."""

    step: int
    """Number of optimizer steps done."""
    clips: int
    """Number of validation clips."""
    mse: float
    """Squared error of the model, summed over a frame, averaged over predicted frames and clips."""
    copying_mse: float
    """Squared error of copying, summed and averaged in the same way."""
    held_out: bool = True
    """True if the model was not trained on the clips."""
    in_doubt: bool = False
    """True if the clips do not count as held out because file names look like names of splits that were not used."""
    skipped: tuple[str, ...] = ()
    """Files that were skipped because they cannot be read."""

    @property
    def beats_copying(self) -> bool:
        """True if the error of the model is less than the error of copying."""
        return self.mse < self.copying_mse

    @property
    def verdict(self) -> str:
        """Result in words, with a remedy if copying is at least as good."""
        numbers = f"squared error {self.mse:.4g} per frame compared with {self.copying_mse:.4g}, on {self.clips} "
        numbers += "validation clip" if self.clips == 1 else "validation clips"
        if self.in_doubt:
            numbers += ", which do not count as held out: some file names look like names of splits"
        elif not self.held_out:
            numbers += ", which are not held out: the model was trained on them too"
        elif self.clips < FEW:
            numbers += ", too few for a reliable result"
        if self.beats_copying:
            barely = "barely " if self.mse > BARELY * self.copying_mse else ""
            look = "on dark clips a black frame may beat copying too, so check the pictures in previews/"
            return f"the model {barely}beats copying the last frame: {numbers}; {look}"
        if self.copying_mse == 0:
            return f"nothing moves in the validation clips, so nothing can beat copying the last frame: {numbers}"
        return (
            f"the model does not beat copying the last frame: {numbers}; train longer, use a larger "
            "--preset, or set --l1-weight 0 if the run has to be short"
        )

    def write(self, run: Path) -> None:
        """Write the comparison into a run folder."""
        entries = {**asdict(self), "beats_copying": self.beats_copying, "verdict": self.verdict}
        write_file(run / RESULT, (json.dumps(entries, indent=2) + "\n").encode())


class Validated(Callback):
    """Callback that stores the errors of the last validation."""

    def __init__(self) -> None:
        self.last: tuple[int, float, float] | None = None
        """Optimizer step, error of the model and error of copying; None before the first validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        errors = trainer.callback_metrics
        self.last = (trainer.global_step, float(errors["valid_mse"]), float(errors["valid_copy_mse"]))


def copying_errors(frames: Tensor, context_length: int) -> Tensor:
    """Return the squared error of copying the last frame of the context.

    Args:
        frames: clips, [B, T, C, H, W].

    Returns:
        Error of each frame after the context, summed over the frame, [B, horizon].
    """
    return (frames[:, context_length - 1 : context_length] - frames[:, context_length:]).square().sum((2, 3, 4))


@torch.inference_mode()
def measure(
    path: Path, clips: Dataset[Tensor], config: TrainConfig, *, steps: int, device: torch.device
) -> tuple[int, float, float]:
    """Measure the model in `path` on some validation clips, evenly spread over the set.

    The number of clips, at least one, is limited so that measuring takes at most a twentieth of the work of the run.

    Args:
        steps: number of optimizer steps of the run.

    Returns:
        Number of clips, error of the model, error of copying.
    """
    model, C = checkpoint.load(path).to(device).eval(), config.context_length
    number = int(min(len(clips), max(1.0, SHARE * WITH_GRADIENTS * steps * config.batch_size)))  # type: ignore[arg-type]
    ours, copied = 0.0, 0.0
    for index in range(number):
        frames = clips[index * len(clips) // number][None].to(device)  # type: ignore[arg-type]
        predictions = model(frames[:, :C], config.horizon)[:, -config.horizon :].float().clamp(0, 1)
        ours += float((predictions - frames[:, C:]).square().sum((2, 3, 4)).mean())
        copied += float(copying_errors(frames, C).mean())
    return number, ours / number, copied / number
