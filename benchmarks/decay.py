"""Forecast error by age of the state and by renewal, before and after fine-tuning with a burn-in.

    git show faccf7a:e3d_deploy/demo/moving_mnist.safetensors > before.safetensors
    e3d export before.safetensors -o before.e3d
    git show d4c7e59:e3d_deploy/demo/moving_mnist.safetensors > after.safetensors
    e3d export after.safetensors -o after.e3d
    measure="--streaming --backend onnxruntime --threads 1 --json"
    film="--data e3d_deploy/data/clips/pedestrians.mp4 --ages 5,7,10,12,15,20,30,60 --most 81"
    e3d evaluate before.e3d $measure --most 32 > before-digits.json
    e3d evaluate before.e3d $measure $film > before-film.json
    e3d evaluate after.e3d $measure --most 64 > after-digits.json
    e3d evaluate after.e3d $measure $film > after-film.json
    e3d evaluate after.e3d $measure --most 16 --ages 10,1000 --renewals none > after-long.json
    python -m benchmarks.decay FOLDER

FOLDER contains the five reports of `e3d evaluate`. Writes the reports to benchmarks/results/decay.json, and the plot
docs/streams_decay.png.
"""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.common import save
from e3d_deploy import plots

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("before-digits", "before-film", "after-digits", "after-film", "after-long")
AGES = (1, 2, 3, 5, 10, 12, 15, 20, 30, 60, 100, 150)


def ratios(report: dict[str, Any]) -> list[float]:
    """Return the error at each of `AGES`, divided by the error at the age that equals the training context."""
    return [report["ages"][str(age)]["ratio"] for age in AGES]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Collect the reports in FOLDER and plot the error by age."""
    reports = {name: json.loads((folder / f"{name}.json").read_text()) for name in NAMES}
    for report in reports.values():
        del report["model"], report["identity"]
    series = {
        "before": ratios(reports["before-digits"]),
        "after a burn-in": ratios(reports["after-digits"]),
        "copying the last frame, before": [
            reports["before-digits"]["copy_last"]["mse"] / reports["before-digits"]["ages"]["10"]["mse"]
        ]
        * len(AGES),
    }
    picture = plots.curves(
        series, x=AGES, xlabel="age of the state (frames seen)", ylabel="error, as a multiple of that at age 10"
    )
    (DOCS / "streams_decay.png").write_bytes(picture)
    save("decay", {"what": "e3d evaluate --streaming, former demo model", **reports}, threads=1)


if __name__ == "__main__":
    main()
