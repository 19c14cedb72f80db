"""How good the demo model's forecasts are: 1,000 generated clips of digits that training never saw.

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
import torch

from e3d_deploy import checkpoint, metrics
from e3d_deploy.data.datasets import MovingMNIST
from e3d_deploy.demo.tour import CARD, CONTEXT, HORIZON, MODEL, TEST_SEED

SEQUENCES, BATCH = 1000, 20


def measure() -> dict[str, Any]:
    """Every measure per predicted frame, mean over the clips, for the model and for two baselines."""
    model = checkpoint.load(MODEL)
    data = MovingMNIST("test", length=CONTEXT + HORIZON, seed=TEST_SEED)
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    for start in range(0, SEQUENCES, BATCH):
        clips = torch.stack([data[index] for index in range(start, start + BATCH)])
        with torch.inference_mode():
            forecast = model(clips[:, :CONTEXT], HORIZON)[:, -HORIZON:].clamp(0, 1).numpy()
        truth = clips[:, CONTEXT:].numpy()
        last = clips[:, CONTEXT - 1 : CONTEXT].numpy().repeat(HORIZON, axis=1)
        mean = clips[:, :CONTEXT].mean(1, keepdim=True).numpy().repeat(HORIZON, axis=1)
        for who, answer in {"forecast": forecast, "copy last": last, "mean of context": mean}.items():
            for name, function in metrics.MEASURES.items():
                values.setdefault(name, {}).setdefault(who, []).append(function(answer, truth))  # [B, T]
        print(f"{start + BATCH} of {SEQUENCES}", end="\r", flush=True)
    return {
        name: {who: np.concatenate(parts).mean(0).round(5).tolist() for who, parts in by.items()}
        for name, by in values.items()
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
