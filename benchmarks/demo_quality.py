"""Forecast quality of the demo model on 1,000 generated clips of digits that training never saw.

    python -m benchmarks.demo_quality [--run RUN_FOLDER --command COMMAND]...

Writes e3d_deploy/demo/moving_mnist.json, the card that ships with the model. With the runs that made it, one
after the other, their commands, settings and curve go into it; without, those in the card stay.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from e3d_deploy import checkpoint
from e3d_deploy.data.datasets import MovingMNIST
from e3d_deploy.demo.tour import CARD, CONTEXT, HORIZON, MODEL, TEST_SEED
from e3d_deploy.evaluation import evaluate
from e3d_deploy.evaluation.conventions import OPENSTL, ORIGINAL
from e3d_deploy.runtime import Predictor
from e3d_deploy.runtime.backends.torch_eager import TorchBackend

SEQUENCES = 1000
TAKEN_FROM = {"mse": ORIGINAL, "mae": ORIGINAL, "psnr": OPENSTL, "ssim": OPENSTL}
"""The measures of the card, all of clipped predictions, and the convention that takes them so."""


def measure(sequences: int = SEQUENCES) -> dict[str, Any]:
    """Every measure per predicted frame, mean over the clips, for the model and for two baselines."""
    model = checkpoint.load(MODEL)
    data = MovingMNIST("test", length=CONTEXT + HORIZON, seed=TEST_SEED)
    found = evaluate(
        Predictor(model.config, TorchBackend(model), identity=MODEL.name),
        (data[index].numpy() for index in range(sequences)),
        context_length=CONTEXT,
        horizon=HORIZON,
        each=lambda number, _clip, _forecast: print(f"{number} of {sequences}", end="\r", flush=True),
    )
    return {
        name: {who: np.round(found.frames[convention.name, name, who], 5).tolist() for who in found.answerers}
        for name, convention in TAKEN_FROM.items()
    }


def curve(runs: Sequence[Path]) -> dict[str, list[float]]:
    """The validation error over the steps of runs that follow each other, each over all its starts."""
    steps, errors, before = [], [], 0
    for run in runs:
        for file in sorted(run.glob("logs/version_*/metrics.csv")):
            with file.open() as opened:
                rows = [row for row in csv.DictReader(opened) if row["valid_mse"]]
            steps += [before + int(row["step"]) + 1 for row in rows]
            errors += [round(float(row["valid_mse"]), 2) for row in rows]
        before = steps[-1]
    return {"step": steps, "valid_mse": errors}


@click.command()
@click.option("--run", "runs", multiple=True, type=click.Path(path_type=Path, exists=True), help="Run folder.")
@click.option("--command", "commands", multiple=True, help="The command that made the run.")
def main(runs: tuple[Path, ...], commands: tuple[str, ...]) -> None:
    card = json.loads(CARD.read_text()) if CARD.exists() else {}
    if runs:
        settings = [json.loads((run / "config.json").read_text()) for run in runs]
        card |= {"commands": commands, "settings": [one["train"] for one in settings], "curve": curve(runs)}
    measures = measure()
    card["quality"] = {
        "sequences": SEQUENCES,
        "task": f"Moving MNIST, {CONTEXT} frames given, {HORIZON} predicted, seed {TEST_SEED}",
        "measures": measures,
    }
    CARD.write_text(json.dumps(card, indent=1) + "\n")
    for name, by in measures.items():
        print(f"{name:5}", "  ".join(f"{who} {np.mean(line):.4g}" for who, line in by.items()))


if __name__ == "__main__":
    main()
