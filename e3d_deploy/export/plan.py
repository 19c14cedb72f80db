"""Plan of an export: its settings, checked before anything is computed, with the model and a reference clip."""

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
from e3d_deploy.runtime.backends.specs import check_runs, export_backends
from e3d_deploy.shipped import extracted


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Checked settings of an export, with its model and its reference clip."""

    name: str
    """Name of the bundle."""
    model: E3DLSTM
    """Model that is exported."""
    card: Card
    """Facts about the model."""
    form: Form
    """Form of the frames of clips that are read for it."""
    clip: NDArray[np.float32]
    """Reference clip, [T, C, H, W]."""
    context_length: int
    """Frames that the clip graph takes."""
    horizon: int
    """Frames that the clip and rollout graphs give."""
    batch: int | None
    """Streams that the graphs run at once; None for any number."""
    precision: str
    """Policy, or `auto`."""
    budget: Budget | None
    """Allowed loss of quality; None for that of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    backend: str | None
    """Backend that has to run it, the only one with graphs of its own; None for all."""
    calibration: Path | None
    """Clips to learn ranges from; None for some of the package's."""


def plan_export(
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
) -> Plan:
    """Check the settings of an export, and read its model and reference clip; arguments and errors as of `export`."""
    for name, value in (("context", context_length), ("horizon", horizon), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: got {value}, expected 1 or more")
    backends = export_backends()
    if backend is not None and backend not in backends:
        raise ConfigError(f"backend: got {backend!r}, expected one of {', '.join(backends)}")
    _check_precision(precision, exclude, backend)
    model, card = checkpoint.load(model_path), checkpoint.read_card(model_path)
    known_context, known_horizon = card.lengths()
    form = Form.of(model.config, card, layout)
    context_length, horizon = context_length or known_context, horizon or known_horizon
    return Plan(
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


def _check_precision(precision: str, exclude: Sequence[str], backend: str | None) -> None:
    """Raise unless a policy is known and the backend runs it."""
    if precision != "auto" and precision not in POLICIES:
        raise ConfigError(f"precision: got {precision!r}, expected auto or one of {', '.join(POLICIES)}")
    if exclude and precision in ("fp32", "tf32"):
        raise ConfigError(f"exclude: {precision} has no low type that a layer could be kept from")
    if backend is not None and precision != "auto":
        check_runs(precision, backend)


def reference_clip(form: Form, length: int, path: Path | None) -> NDArray[np.float32]:
    """Return a real clip for a model: the first in `path` that is long enough, else one that suits it.

    Returns:
        float32 [T, C, H, W].

    Raises:
        ClipError, ShapeError: no clip in `path` is long enough, or none fits.
    """
    if path is None and suits(form.image_size, form.channels):
        rng = np.random.default_rng(0)
        pictures: NDArray[Any] = moving_mnist(load_digits("test"), rng, length=length, image_size=form.image_size)
    else:
        remarks = Remarks(silent=path is None)
        with nullcontext(path) if path else extracted(PEDESTRIANS) as source:
            pictures = read_clips(source, form, most=length, least=length, count=1, remarks=remarks).frames[0]
    return frames.to_frames(pictures, image_size=form.image_size, channels=form.channels, name="reference")
