"""An imported model against what the original gave for the same frames."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import frames
from e3d_deploy.contrast import FEWEST_TO_VERIFY, blankness
from e3d_deploy.errors import ClipError, ShapeError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.tensors import without_number

BUDGET = 1e-4
"""Largest difference of a pixel, both in float32."""
EXPECTED = (
    "expected an .npz with frames (or images) and predictions (or pred_images), [B, T, H, W, C], "
    "and all_outputs if there are any"
)


@dataclass(frozen=True)
class Parity:
    """Differences between a model's predictions and those of the original."""

    differences: dict[int, float]
    """Largest one of each frame that was compared, by its number in the clip, from 1."""
    budget: float = BUDGET
    """Largest difference allowed."""

    @property
    def worst(self) -> float:
        """The largest of all; NaN if there is one."""
        return float(np.max(list(self.differences.values())))

    @property
    def passed(self) -> bool:
        """True if the largest difference is within the budget."""
        return self.worst <= self.budget


def compare(model: E3DLSTM, path: Path) -> Parity:
    """Let a model predict what the original predicted.

    Args:
        path: .npz with `frames` or `images` [B, T, H, W, C], uint8 or in [0, 1], and `predictions` or
            `pred_images` [B, horizon, H, W, C] that followed the first T − horizon of them.
            `all_outputs` [B, T − 1, H, W, C], where they are there, are compared instead.

    Raises:
        ClipError: not such a file, blank or still frames, predictions that nothing can be compared with, or a clip that
            is longer than the model's history.
        ShapeError: frames of another size.
    """
    arrays = _read(path)
    shown = arrays.get("frames", arrays.get("images"))
    predicted = arrays.get("predictions", arrays.get("pred_images"))
    if shown is None or predicted is None or not shown.ndim == predicted.ndim == 5:
        raise ClipError(f"{path}: has {', '.join(sorted(arrays)) or 'no arrays'}; {EXPECTED}")
    config = model.config
    clips = torch.from_numpy(
        frames.to_frames(shown, image_size=config.image_size, channels=config.channels, name=f"{path}, frames")
    )
    (B, T), horizon = clips.shape[:2], predicted.shape[1]
    if not 0 < horizon < T:
        raise ClipError(f"{path}: {horizon} predictions for {T} frames leave no context; {EXPECTED}")
    if config.history_length < T - 1:
        raise ClipError(
            f"{path}: {T - 1} steps, and the model recalls the last {config.history_length} cells alone, where the "
            f"original recalls all; import it with --history-length {T - 1}"
        )
    expected = arrays.get("all_outputs", predicted)
    wanted = (B, T - 1 if "all_outputs" in arrays else horizon, *shown.shape[2:])
    if expected.shape != wanted:
        raise ShapeError(f"{path}: outputs of shape {list(expected.shape)}, expected {list(wanted)}; {EXPECTED}")
    if lacking := blankness((frame for clip in clips.numpy() for frame in clip), fewest=FEWEST_TO_VERIFY):
        raise ClipError(
            f"{path}: {lacking} to tell one network from another; record what the original gives for others"
        )
    if lacking := _unfit(expected):
        raise ClipError(f"{path}: its predictions {lacking}; record what the original computes, as floats")
    with torch.inference_mode():  # one by one, as a batch may be of any size
        found = torch.cat([model(clip[None, : T - horizon], horizon) for clip in clips])
    pictures = found.movedim(2, -1).numpy()[:, -expected.shape[1] :]
    worst = np.abs(pictures - expected).max(axis=(0, 2, 3, 4))
    return Parity({T - len(worst) + 1 + t: float(difference) for t, difference in enumerate(worst)})


def _unfit(predictions: NDArray[Any]) -> str | None:
    """Return why predictions are none to compare with, in words; None if they are."""
    if not np.issubdtype(predictions.dtype, np.floating):
        return f"are {predictions.dtype}"
    if not np.isfinite(predictions).all():
        return "hold NaN or infinity"
    span = float(np.ptp(predictions))
    return f"differ by {span:.1e} at most, within the budget of {BUDGET:g}" if span <= BUDGET else None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path) as archive:
            known = ("frames", "images", "predictions", "pred_images", "all_outputs")
            return {name: archive[name] for name in archive.files if name in known}
    except FileNotFoundError as error:
        raise ClipError(f"{path}: no such file; {EXPECTED}") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path}: cannot be read ({without_number(error)}); {EXPECTED}") from error
