"""Forecast error by age of the state, for models that were trained with and without a burn-in.

    git show faccf7a:e3d_deploy/demo/moving_mnist.safetensors > start.safetensors
    common="--data moving-mnist:9 --data e3d_deploy/data/clips/pedestrians_train.mp4:1
        --init start.safetensors --patch-size 8 --hidden 40,40 --kernel-size 3 --batch-size 4
        --optimizer adam --gradient-clip 0.0514 --l1-weight 0.5 --learning-rate 1e-3 --warmup-steps 5
        --sampling-stop-step 0 --ema-decay 0.99 --validate-every 100000 --validation-clips 4 --save-every 50
        --schedule-by time --time-limit 29"
    e3d train -o runs/none $common --burn-in 0
    e3d train -o runs/tenth $common
    e3d train -o runs/all $common --burn-in-steps 80000
    python -m benchmarks.burn_in --start start.safetensors --run none runs/none --run tenth runs/tenth \\
        --run all runs/all

The weights that training started from (`--start`) are measured too. All ages are measured on the same forecast frames:
a state of age n has seen the n frames before these. Writes benchmarks/results/burn_in.json, burn_in_digits.png and
burn_in_film.png; earlier results of other runs are kept.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import RESULTS, save
from e3d_deploy import plots, runtime
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.export.bundle import export
from e3d_deploy.runtime import Stream

AGES = {"digits": (5, 10, 20, 60, 150), "film": (5, 10, 20, 60)}
HORIZON, LENGTH, SEED = 10, 170, 2
Clip = NDArray[np.uint8]
"""Pictures, uint8 [T, H, W, C]."""


def clips(count: int) -> dict[str, list[Clip]]:
    """Return clips of each kind; their last `HORIZON` frames are forecast, and the frames before them age the state.

    The clips of the film are all its windows that are long enough for the highest age.

    Args:
        count: number of clips of digits.
    """
    digits = load_digits("test")
    film = read_clips(PEDESTRIANS, Form(image_size=(64, 64), channels=1)).frames[0]
    length = max(AGES["film"]) + HORIZON
    return {
        "digits": [moving_mnist(digits, np.random.default_rng((SEED, index)), length=LENGTH) for index in range(count)],
        "film": [film[first : first + length] for first in range(len(film) - length + 1)],
    }


def error(stream: Stream, windows: Sequence[Clip], age: int) -> float:
    """Return the squared error of forecasts at an age: sum over pixels, mean over frames and windows.

    Forecasts are clipped to [0, 1].
    """
    errors = []
    for window in windows:
        stream.reset()
        for picture in window[-HORIZON - age : -HORIZON]:
            stream.push(picture)
        errors.append(squares(stream.forecast(HORIZON).clip(0, 1), window))
    return float(np.mean(errors))


def squares(forecast: NDArray[np.float32], window: Clip) -> float:
    """Return the squared error of a forecast of the last frames of a window: sum over pixels, mean over frames.

    Args:
        forecast: [horizon, C, H, W], or [1, C, H, W] to use one frame for all.
    """
    truth = np.moveaxis(window[-HORIZON:], -1, 1) / np.float32(255)
    return float(np.square(forecast - truth).sum() / HORIZON)


def copying(windows: Sequence[Clip]) -> float:
    """Return the error of the baseline that repeats the last frame of the context as its forecast."""
    last = [np.moveaxis(window[-HORIZON - 1, None], -1, 1) / np.float32(255) for window in windows]
    return float(np.mean([squares(frame, window) for frame, window in zip(last, windows, strict=True)]))


def measure(path: Path, windows: Mapping[str, Sequence[Clip]]) -> dict[str, dict[str, float]]:
    """Return the errors of a model file by kind of clip and age.

    The model runs in ONNX Runtime, which is faster than PyTorch here.
    """
    with tempfile.TemporaryDirectory() as name:
        bundle = export(path, Path(name) / "model.e3d")
        with runtime.load(bundle, "onnxruntime", threads=1) as predictor:
            stream = predictor.stream(renewal="none")
            return {kind: {str(age): error(stream, windows[kind], age) for age in AGES[kind]} for kind in AGES}


def training(run: Path) -> dict[str, Any]:
    """Return the number of steps of a run and the settings in which the runs differ."""
    settings = json.loads((run / "config.json").read_text())
    state = torch.load(run / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
    kept = {name: settings["train"].get(name) for name in ("burn_in", "burn_in_steps", "steps", "learning_rate")}
    return {**kept, "time_limit_s": settings["time_limit_s"], "steps_done": int(state["global_step"])}


def before(numbers: Mapping[str, int]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the recorded errors and training settings of earlier calls; empty unless they used the same windows.

    Args:
        numbers: number of windows of each kind.
    """
    path = RESULTS / "burn_in.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return (found["mse"], found["training"]) if found.get("windows") == numbers else ({}, {})


def draw(kind: str, rows: Mapping[str, Mapping[str, Any]], copied: float) -> None:
    """Plot the errors for one kind of clips."""
    ages = AGES[kind]
    series = {name: [row[kind][str(age)] for age in ages] for name, row in rows.items()}
    series["copying the last frame"] = [copied] * len(ages)
    picture = plots.curves(series, x=ages, xlabel="age of the state, frames", ylabel=f"squared error, {kind}")
    (RESULTS / f"burn_in_{kind}.png").write_bytes(picture)


@click.command()
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=(str, click.Path(path_type=Path, exists=True)),
    help="Name and folder of a run.",
)
@click.option(
    "--start", type=click.Path(path_type=Path, exists=True), required=True, help="Weights that the runs started from."
)
@click.option("--clips", "count", default=64, help="Number of clips of digits.")
def main(runs: tuple[tuple[str, Path], ...], start: Path, count: int) -> None:
    """Measure the forecast error by age of the state."""
    windows = clips(count)
    numbers = {kind: len(of_kind) for kind, of_kind in windows.items()}
    copied = {kind: copying(of_kind) for kind, of_kind in windows.items()}
    rows, trained = before(numbers)
    models = {} if "start" in rows else {"start": start}
    for name, path in (models | {name: run / "model.safetensors" for name, run in runs}).items():
        rows[name] = measure(path, windows)
        click.echo(f"{name}: {rows[name]}", err=True)
    for kind in AGES:
        draw(kind, rows, copied[kind])
    trained |= {name: training(run) for name, run in runs}
    save("burn_in", {"windows": numbers, "mse": rows, "copying": copied, "training": trained})


if __name__ == "__main__":
    main()
