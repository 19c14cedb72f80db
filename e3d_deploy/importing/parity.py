"""Compare an imported model with recorded predictions of the original."""

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
"""Maximum difference of a pixel value between two predictions in float32."""
EXPECTED = (
    "expected an .npz with frames (or images) and predictions (or pred_images), all "
    "[B, T, H, W, C], and optionally all_outputs"
)


@dataclass(frozen=True)
class Parity:
    """Differences between a model's predictions and those of the original."""

    differences: dict[int, float]
    """Largest difference in each compared frame, by the number of the frame in the clip, from 1."""
    budget: float = BUDGET
    """Maximum difference allowed."""

    @property
    def worst(self) -> float:
        """Largest difference in any frame; NaN if any difference is NaN."""
        return float(np.max(list(self.differences.values())))

    @property
    def passed(self) -> bool:
        """True if the largest difference is within the budget."""
        return self.worst <= self.budget


def compare_outputs(model: E3DLSTM, path: Path) -> Parity:
    """Compare a model's predictions with those that the original made for the same frames.

    Args:
        path: .npz with `frames` or `images` [B, T, H, W, C], uint8 or in [0, 1], and `predictions` or `pred_images`
            [B, horizon, H, W, C], the original's forecast after the first T − horizon frames. If the file has
            `all_outputs` [B, T − 1, H, W, C], they are compared in place of the predictions.

    Raises:
        ClipError: `path` is not such a file, its frames are blank or do not move, its predictions are not finite floats
            or hardly differ from each other, or its clips are longer than the model's history.
        ShapeError: the frames do not have the size that the model expects, or the outputs do not have the size of the
            frames.
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
            f"{path}: has {T - 1} steps, but the model recalls only the last {config.history_length} cell states and "
            f"the original recalls all; import it with --history-length {T - 1}"
        )
    expected = arrays.get("all_outputs", predicted)
    wanted = (B, T - 1 if "all_outputs" in arrays else horizon, *shown.shape[2:])
    if expected.shape != wanted:
        raise ShapeError(f"{path}: has outputs of shape {list(expected.shape)}, expected {list(wanted)}; {EXPECTED}")
    if lacking := blankness((frame for clip in clips.numpy() for frame in clip), fewest=FEWEST_TO_VERIFY):
        raise ClipError(
            f"{path}: {lacking}; such frames cannot distinguish networks, so record the original on other clips"
        )
    if lacking := _unfit(expected):
        raise ClipError(f"{path}: its predictions {lacking}; record the original's outputs as floats")
    with torch.inference_mode():  # one clip at a time, because a whole batch may not fit in memory
        found = torch.cat([model(clip[None, : T - horizon], horizon) for clip in clips])
    pictures = found.movedim(2, -1).numpy()[:, -expected.shape[1] :]
    worst = np.abs(pictures - expected).max(axis=(0, 2, 3, 4))
    return Parity({T - len(worst) + 1 + t: float(difference) for t, difference in enumerate(worst)})


def _unfit(predictions: NDArray[Any]) -> str | None:
    """Return why predictions are unfit for a comparison, in words; None if they are fit."""
    if not np.issubdtype(predictions.dtype, np.floating):
        return f"are {predictions.dtype}"
    if not np.isfinite(predictions).all():
        return "contain NaN or infinity"
    span = float(np.ptp(predictions))
    return f"differ by at most {span:.1e}, which is within the budget of {BUDGET:g}" if span <= BUDGET else None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path) as archive:
            known = ("frames", "images", "predictions", "pred_images", "all_outputs")
            return {name: archive[name] for name in archive.files if name in known}
    except FileNotFoundError as error:
        raise ClipError(f"{path}: no such file; {EXPECTED}") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path}: cannot be read ({without_number(error)}); {EXPECTED}") from error
