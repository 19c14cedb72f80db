"""Forecast quality of the recipes of `e3d train`, with the same network, initial weights, clips and optimizer steps.

    python -m benchmarks.recipes [--steps 400]

Scheduled sampling ends after half of the steps in every recipe, because the published recipes end it after 50,000
steps. All other settings are those of the recipe. Writes benchmarks/results/recipes.json.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import RESULTS, save
from e3d_deploy import checkpoint, metrics
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import MovingMNIST
from e3d_deploy.training.train import Machine, train

MODEL = ModelConfig(patch_size=8, hidden=(24, 24), kernel_size=3)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "google": ("google", {}),
    "openstl": ("openstl", {}),
    "modern": ("modern", {}),
    "modern, squared errors alone": ("modern", {"l1_weight": 0.0}),
}
CLIPS, BATCH, SEED = 200, 20, 2


def quality(path: Path) -> dict[str, float]:
    """Return the mean of each measure over the predicted frames of `CLIPS` test clips."""
    model = checkpoint.load(path)
    data = MovingMNIST("test", length=20, seed=SEED)
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics.MEASURES}
    for start in range(0, CLIPS, BATCH):
        clips = torch.stack([data[index] for index in range(start, start + BATCH)])
        with torch.inference_mode():
            forecast = model(clips[:, :10], 10)[:, -10:].clamp(0, 1).numpy()
        for name, measure in metrics.MEASURES.items():
            values[name].append(measure(forecast, clips[:, 10:].numpy()))
    return {name: float(np.concatenate(parts).mean()) for name, parts in values.items()}


@click.command()
@click.option("--steps", default=400, help="Number of optimizer steps.")
@click.option(
    "--run",
    "names",
    multiple=True,
    type=click.Choice(list(RUNS)),
    help="Measure only this recipe and keep the results of others; repeatable.",
)
def main(steps: int, names: tuple[str, ...]) -> None:
    """Compare the recipes of `e3d train`."""
    before = RESULTS / "recipes.json"
    rows = json.loads(before.read_text())["runs"] if names and before.exists() else {}
    for name in names or RUNS:
        recipe, changes = RUNS[name]
        half = steps // 2
        config = TrainConfig.of_recipe(
            recipe,
            **{"steps": steps, "batch_size": 4, "validate_every": steps, "sampling_stop_step": half, **changes},
            sampling_decrease=None,
            sampling_hold_steps=half // 2,
            sampling_decay_steps=half / 10,
            validation_clips=4,
        )
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = train(MODEL, config, Path(folder) / "run", machine=Machine(progress=False))
            other = path.with_name("model_plain.safetensors" if config.average else "model_ema.safetensors")
            rows[name] = {"minutes": (time.perf_counter() - begin) / 60, **quality(path)}
            rows[name]["mse of the other weights"] = quality(other)["mse"]
        save("recipes", {"model": MODEL.to_dict(), "steps": steps, "clips": CLIPS, "seed": SEED, "runs": rows})


if __name__ == "__main__":
    main()
