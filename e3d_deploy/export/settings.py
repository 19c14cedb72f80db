"""Settings of an export, checked before anything is computed, with the model and the reference clip."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import checkpoint, frames
from e3d_deploy.card import Card
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist, suits
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ConfigError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import POLICIES, Budget
from e3d_deploy.runtime.arguments import check_counts
from e3d_deploy.runtime.backends.specs import check_runs, export_backends
from e3d_deploy.shipped import extracted


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Checked settings of an export, with its model and its reference clip."""

    name: str
    """Name of the bundle."""
    model: E3DLSTM
    """Model that is exported."""
    card: Card
    """Facts about the model."""
    form: Form
    """Size, channels and layout of the frames that are read for the model."""
    clip: NDArray[np.float32]
    """Reference clip, [T, C, H, W]."""
    context_length: int
    """Number of frames that the clip graph takes."""
    horizon: int
    """Number of frames that the clip and rollout graphs return."""
    batch: int | None
    """Batch size of the graphs; None for any batch size."""
    precision: str
    """Precision policy, or `auto`."""
    budget: Budget | None
    """Maximum loss of quality; None for the default budget of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    backend: str | None
    """Backend that has to run the bundle; None for all backends. Backend-specific graphs are written only for this
    backend and for backends with the same variant."""
    calibration: Path | None
    """Clips to calibrate on; None for clips of the package."""


def checked_settings(
    model_path: Path,
    output: Path,
    *,
    context_length: int | None,
    horizon: int | None,
    batch: int | None,
    precision: str,
    budget: Budget | None,
    exclude: Sequence[str],
    backend: str | None,
    calibration: Path | None,
    reference: Path | None,
    layout: str | None = None,
) -> ExportSettings:
    """Check the settings of an export, and read its model and reference clip.

    Arguments and errors are those of `bundle.export`.
    """
    check_counts(context_length=context_length, horizon=horizon, batch=batch)
    if budget is not None and not isinstance(budget, Budget):
        raise ConfigError(f"budget: got {budget!r}, expected a budget, such as Budget(dssim=0.01)")
    backends = export_backends()
    if backend is not None and backend not in backends:
        raise ConfigError(f"backend: got {backend!r}, expected one of {', '.join(backends)}")
    _check_policy(precision, exclude, backend)
    model, card = checkpoint.load(model_path), checkpoint.read_card(model_path)
    known_context, known_horizon = card.lengths()
    form = Form.of(model.config, card, layout)
    context_length, horizon = context_length or known_context, horizon or known_horizon
    return ExportSettings(
        name=output.resolve().name.removesuffix(".e3d"),
        model=model,
        card=card,
        form=form,
        clip=reference_clip(form, context_length + horizon, reference),
        context_length=context_length,
        horizon=horizon,
        batch=batch,
        precision=precision,
        budget=budget,
        exclude=tuple(exclude),
        backend=backend,
        calibration=calibration,
    )


def _check_policy(precision: str, exclude: Sequence[str], backend: str | None) -> None:
    """Check that a policy is known, has a low type if layers are excluded, and runs on the backend."""
    if precision != "auto" and precision not in POLICIES:
        raise ConfigError(f"precision: got {precision!r}, expected auto or one of {', '.join(POLICIES)}")
    if exclude and precision in ("fp32", "tf32"):
        raise ConfigError(f"exclude: {precision} has no low type; exclude no layers, or give another precision")
    if backend is not None and precision != "auto":
        check_runs(precision, backend)


def reference_clip(form: Form, length: int, path: Path | None) -> NDArray[np.float32]:
    """Return a real clip for a model: the first clip in `path` with enough frames; without a path, one of the package.

    Args:
        form: size, channels and layout of the frames of the model.
        length: number of frames.

    Returns:
        Frames, float32 [T, C, H, W].

    Raises:
        ClipError, ShapeError: no clip in `path` has enough frames, or the pictures do not fit the model.
    """
    if path is None and suits(form.image_size, form.channels):
        rng = np.random.default_rng(0)
        pictures: NDArray[Any] = moving_mnist(load_digits("test"), rng, length=length, image_size=form.image_size)
    else:
        remarks = Remarks(silent=path is None)
        with nullcontext(path) if path else extracted(PEDESTRIANS) as source:
            pictures = read_clips(source, form, most=length, least=length, count=1, remarks=remarks).frames[0]
    return frames.to_frames(pictures, image_size=form.image_size, channels=form.channels, name="reference")
