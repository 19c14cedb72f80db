"""Trained models of the demo, and their test clips."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import checkpoint
from e3d_deploy.data.clips import PEDESTRIANS, Clips, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import CheckpointError
from e3d_deploy.shipped import extracted

HERE = files("e3d_deploy.demo")
MODEL, CARD = HERE / "moving_mnist.safetensors", HERE / "moving_mnist.json"
MODELS = Path(__file__).parents[2] / "models"
"""Folder of a checkout that contains models too large for the package."""
CONTEXT, HORIZON = 10, 10
TEST_SEED = 2
"""Seed of the fixed test set of digits; benchmarks/demo_quality.py measures its first 1,000 clips."""
EXAMPLES = 4
"""Number of test clips that the tour forecasts with each model."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """Trained model of the demo, with its data and descriptions."""

    name: str
    """Name of the exhibit's output files and bundle."""
    title: str
    model: Traversable
    card: Traversable
    """JSON file with the learning curve and the quality per predicted frame."""
    measured_by: str
    """Command that measured the quality."""
    tested_on: str
    """Description of the test clips of this measurement; the report writes the number of clips before it."""
    examples: Callable[[Form], list[NDArray[Any]]]
    """Function that returns test clips, each uint8 [CONTEXT + HORIZON, H, W, C]."""
    video: Callable[[Form], Clips]
    """Function that returns a longer clip to stream."""
    film: Traversable | None = None
    """Video file of the longer clip, which the live page can play; None if there is no file."""
    engines: bool = False
    """True if the tour builds engines."""


def digits_clip(index: int, length: int = CONTEXT + HORIZON) -> NDArray[np.uint8]:
    """Return a clip of the fixed test set of digits, uint8 [length, 64, 64, 1]."""
    return moving_mnist(load_digits("test"), np.random.default_rng((TEST_SEED, index)), length=length)


def _digit_examples(_: Form) -> list[NDArray[Any]]:
    return [digits_clip(index) for index in range(EXAMPLES)]


def _digit_video(_: Form) -> Clips:
    return Clips([digits_clip(1000, 60)], ["Moving MNIST"])


def film_windows(form: Form) -> NDArray[np.uint8]:
    """Return every window of CONTEXT + HORIZON frames of the test film, uint8 [N, T, H, W, C]."""
    film = _film(form).frames[0]
    starts = range(len(film) - CONTEXT - HORIZON + 1)
    return np.stack([film[start : start + CONTEXT + HORIZON] for start in starts])


def _film_examples(form: Form) -> list[NDArray[Any]]:
    windows = film_windows(form)
    return list(windows[:: len(windows) // EXAMPLES][:EXAMPLES])


def _film(form: Form) -> Clips:
    with extracted(PEDESTRIANS) as path:
        return read_clips(path, form, remarks=Remarks(silent=True))


DIGITS = Exhibit(
    name="digits",
    title="Moving MNIST, small model",
    model=MODEL,
    card=CARD,
    measured_by="python -m benchmarks.demo_quality",
    tested_on="generated test clips of digits that are not in the training data",
    examples=_digit_examples,
    video=_digit_video,
    engines=True,
)
FILM = Exhibit(
    name="film",
    title="Pedestrians on a square, small model",
    model=HERE / "pedestrians.safetensors",
    card=HERE / "pedestrians.json",
    measured_by="python -m benchmarks.demo_quality --film",
    tested_on="overlapping windows from 15 seconds of the same camera, which are not in the training data",
    examples=_film_examples,
    video=_film,
    film=PEDESTRIANS,
)
FULL = replace(
    DIGITS,
    name="full",
    title="Moving MNIST, full-size model",
    model=MODELS / "moving_mnist_64x4.safetensors",
    card=MODELS / "moving_mnist_64x4.json",
    measured_by="e3d evaluate",
    engines=False,
)


def check(exhibit: Exhibit) -> None:
    """Check that the files of an exhibit exist and can be read, before any work is done.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    for file in (exhibit.model, exhibit.card):
        if not file.is_file():
            remedy = (
                "installed packages do not contain the full-size model; run e3d from a checkout of the repository, or "
                "show the small models without --full"
                if exhibit is FULL
                else "install the package again"
            )
            raise CheckpointError(f"{file}: no such file; {remedy}")
    with extracted(exhibit.model) as path:
        checkpoint.read_card(path)
    try:
        card = json.loads(exhibit.card.read_text(encoding="utf-8"))
        missing = {"curve", "quality"} - set(card)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{exhibit.card}: not JSON ({error}); install the package again") from error
    if missing:
        raise CheckpointError(f"{exhibit.card}: lacks {' and '.join(sorted(missing))}; install the package again")
