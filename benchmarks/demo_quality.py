"""Forecast quality of the demo models on clips that training never saw.

    python -m benchmarks.demo_quality [--film] [--run RUN_FOLDER --command COMMAND]...

The model of digits is measured on 1,000 generated clips; with `--film`, the model of film is measured on every window
of the test film. Writes the card that ships with the model: e3d_deploy/demo/moving_mnist.json or pedestrians.json.
`--run` and `--command` name the training runs of the model, in order; the commands, the settings and the learning curve
are then written to the card too. Otherwise the card keeps those that it contains.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from e3d_deploy import checkpoint
from e3d_deploy.data.datasets import MovingMNIST
from e3d_deploy.data.form import Form
from e3d_deploy.demo.exhibits import CONTEXT, DIGITS, FILM, HORIZON, TEST_SEED, Exhibit, film_windows
from e3d_deploy.evaluation import evaluate
from e3d_deploy.evaluation.conventions import OPENSTL, ORIGINAL
from e3d_deploy.frames import Frames, to_frames
from e3d_deploy.runtime import Predictor
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.shipped import extracted

SEQUENCES = 1000
TAKEN_FROM = {"mse": ORIGINAL, "mae": ORIGINAL, "psnr": OPENSTL, "ssim": OPENSTL}
"""Measures of the card, each with the convention that computes it; all from clipped predictions."""


def measure(exhibit: Exhibit, most: int = SEQUENCES) -> dict[str, Any]:
    """Return each measure per predicted frame, for the model and two baselines.

    Measures are means over the clips.

    Args:
        most: maximum number of clips.
    """
    with extracted(exhibit.model) as path:
        model, card = checkpoint.load(path), checkpoint.read_card(path)
    task, tests = clips(exhibit, Form.of(model.config, card))
    found = evaluate(
        Predictor(model.config, TorchBackend(model), identity=exhibit.model.name),
        islice(tests, most),
        context_length=CONTEXT,
        horizon=HORIZON,
        each=lambda number, _clip, _forecast: print(f"clip {number}", end="\r", flush=True),
    )
    measures = {
        name: {who: np.round(found.frames[convention.name, name, who], 5).tolist() for who in found.forecasters}
        for name, convention in TAKEN_FROM.items()
    }
    return {"sequences": found.clips, "task": task, "measures": measures}


def clips(exhibit: Exhibit, form: Form) -> tuple[str, Iterable[Frames]]:
    """Return a description of the test clips of a model, and the clips, each float [T, C, H, W]."""
    task = f"{CONTEXT} frames given, {HORIZON} predicted"
    if exhibit is FILM:
        windows = film_windows(form)
        frames = (to_frames(clip, image_size=form.image_size, channels=form.channels) for clip in windows)
        return f"pedestrians.mp4, {task}, all overlapping windows", frames
    data = MovingMNIST("test", length=CONTEXT + HORIZON, seed=TEST_SEED)
    return f"Moving MNIST, {task}, seed {TEST_SEED}", (data[index].numpy() for index in range(SEQUENCES))


def curve(runs: Sequence[Path]) -> dict[str, list[float]]:
    """Return the validation error by optimizer step.

    Args:
        runs: folders of successive runs; the log files of a run that was continued are joined.
    """
    steps, errors, before = [], [], 0
    for run in runs:
        for file in sorted(run.glob("logs/version_*/metrics.csv")):
            with file.open() as opened:
                rows = list(csv.DictReader(opened))
            valid = [row for row in rows if row.get("valid_mse")]  # a continued run may have ended before a validation
            steps += [before + int(row["step"]) + 1 for row in valid]
            errors += [round(float(row["valid_mse"]), 2) for row in valid]
        before += int(torch.load(run / "last.ckpt", weights_only=True)["global_step"])
    return {"step": steps, "valid_mse": errors}


@click.command()
@click.option("--film", is_flag=True, help="Measure the model of film instead of digits.")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Run folder; repeat for successive runs.",
)
@click.option("--command", "commands", multiple=True, help="Command of the run; repeat in the order of --run.")
def main(film: bool, runs: tuple[Path, ...], commands: tuple[str, ...]) -> None:
    """Measure a demo model and write its card."""
    exhibit = FILM if film else DIGITS
    path = Path(str(exhibit.card))
    card = json.loads(path.read_text()) if path.exists() else {}
    if runs:
        settings = [json.loads((run / "config.json").read_text()) for run in runs]
        card = {"commands": commands, "settings": [one["train"] for one in settings], "curve": curve(runs)}
    card["quality"] = measure(exhibit)
    path.write_text(json.dumps(card, indent=1) + "\n")
    for name, by in card["quality"]["measures"].items():
        print(f"{name:5}", "  ".join(f"{who} {np.mean(line):.4g}" for who, line in by.items()))


if __name__ == "__main__":
    main()
