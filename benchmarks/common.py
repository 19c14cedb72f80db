"""Models, result files and timing in turn, shared by all benchmarks."""

import json
import platform
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from e3d_deploy import checkpoint, turns
from e3d_deploy.config import ModelConfig
from e3d_deploy.demo.exhibits import MODEL
from e3d_deploy.inventory import cpu_flags
from e3d_deploy.measure.benchmark import environment
from e3d_deploy.model import E3DLSTM

RESULTS = Path(__file__).parent / "results"
FULL = Path(__file__).parents[1] / "models" / "moving_mnist_64x4.safetensors"
"""Trained full-size model; it is part of the checkout, not of the installed package."""
FEATURES = {"amx": "amx_bf16", "avx512-bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2"}
"""Flag in /proc/cpuinfo that identifies each kind of processor, ordered from fastest to slowest."""

CLOCKS: dict[str, turns.Clock] = {"wall": time.perf_counter, "processor": time.process_time}
CLOCK_HELP = "Clock of the timings: elapsed time (wall) or processor time, which other processes disturb less."


SEMANTICS = click.option(
    "--semantics",
    type=click.Choice(["paper", "google"]),
    default="paper",
    show_default=True,
    help="Semantics of the network.",
)


def size_option(default: str) -> Callable[[Any], Any]:
    """Return the option `--size` with a default, `full` or `demo`."""
    return click.option(
        "--size", type=click.Choice(["full", "demo"]), default=default, show_default=True, help="Size of the model."
    )


def processor_kind(flags: Collection[str] | None = None) -> str:
    """Return the kind of a processor, named after its fastest instructions.

    A processor with none of the flags in `FEATURES` is named after its architecture, such as `x86-64`.

    Args:
        flags: flags in the spelling of /proc/cpuinfo; None reads those of this machine.
    """
    if flags is None:
        flags = cpu_flags()
    return next((kind for kind, flag in FEATURES.items() if flag in flags), _architecture())


def _architecture() -> str:
    return platform.machine().lower().replace("_", "-")  # result names are split at underscores


def model_of(size: str, folder: Path) -> Path:
    """Return the demo's model file, or write a full-size model with random weights of a fixed seed to `folder`."""
    if size == "demo":
        return MODEL
    torch.manual_seed(0)
    checkpoint.save(E3DLSTM(ModelConfig()), path := folder / "full.safetensors")
    return path


def demo_model(result: Mapping[str, Any]) -> str:
    """Return the label of the demo model that a result was measured on: the shipped model or the 2×40 model."""
    return "demo model" if result.get("demo_hidden") == demo_hidden() else "2×40 model"


def demo_hidden() -> list[int]:
    """Return the number of hidden channels of each layer of the shipped demo model."""
    return list(checkpoint.load(MODEL).config.hidden)


def save(name: str, result: Mapping[str, Any], *, threads: int | None = None) -> None:
    """Add machine, versions and date to a result, write it to benchmarks/results/NAME.json, and print it.

    Args:
        threads: number of threads that the benchmark ran with; recorded with the machine.
    """
    RESULTS.mkdir(exist_ok=True)
    whole = {"benchmark": name, **result, "demo_hidden": demo_hidden(), "environment": environment(threads)}
    text = json.dumps(whole, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def compare(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int,
    clock: turns.Clock = time.perf_counter,
) -> dict[str, Any]:
    """Time the sides in turn, one block of calls each per round; compare them with the first side.

    Args:
        sides: functions to time, by name.
        rounds: number of blocks of each side.
        calls: number of calls in a block.
        clock: clock of the timings (s); `time.process_time` suits a machine that other processes load.

    Returns:
        For each side, `median_ms`, the median of the medians of its blocks. For each side but the first, also the
        median and the range of its speed-up over the first side in the same round.
    """
    for side in sides.values():
        for _ in range(max(2, calls // 2)):
            side()

    def measure(side: Callable[[], object], _: int) -> float:
        return float(np.median(turns.block(side, fewest=calls, clock=clock)))

    found = turns.in_turn([partial(measure, side) for side in sides.values()], rounds)
    medians = dict(zip(sides, found, strict=True))
    first = next(iter(sides))
    base = np.array(medians[first])
    return {
        name: {
            "median_ms": round(1000 * float(np.median(values)), 3),
            **(
                {}
                if name == first
                else {
                    f"speedup_over_{first}": round(float(np.median(base / values)), 3),
                    "range": [round(float(ratio), 3) for ratio in ((base / values).min(), (base / values).max())],
                }
            ),
        }
        for name, values in medians.items()
    }
