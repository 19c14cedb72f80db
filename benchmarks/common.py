"""Models, results and timing in turn, for all benchmarks."""

import json
import platform
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
"""The trained full-size model of a checkout."""
FEATURES = {"amx": "amx_bf16", "avx512-bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2"}
"""Kinds of processor with the flag of /proc/cpuinfo that tells each, the fastest first."""

CLOCKS: dict[str, turns.Clock] = {"wall": time.perf_counter, "processor": time.process_time}
CLOCK_HELP = "Time by the wall clock, or that of the processor, which other processes on the machine disturb less."


def processor_kind(flags: Collection[str] | None = None) -> str:
    """Return the kind of a processor by its fastest instructions, or its architecture if it has none of them.

    Args:
        flags: as /proc/cpuinfo names them; None for those of this machine.
    """
    if flags is None:
        flags = cpu_flags()
    return next((kind for kind, flag in FEATURES.items() if flag in flags), _architecture())


def _architecture() -> str:
    return platform.machine().lower().replace("_", "-")  # names of results are split at underscores


def model_of(size: str, folder: Path) -> Path:
    """Return the model file of the demo, or write one of the full size with random weights, always the same."""
    if size == "demo":
        return MODEL
    torch.manual_seed(0)
    checkpoint.save(E3DLSTM(ModelConfig()), path := folder / "full.safetensors")
    return path


def demo_model(result: Mapping[str, Any]) -> str:
    """Return words for the demo model that a result is of: the one that ships, or the 2×40 model."""
    return "demo model" if result.get("demo_hidden") == demo_hidden() else "2×40 model"


def demo_hidden() -> list[int]:
    """Return the channels of each layer of the demo model that ships."""
    return list(checkpoint.load(MODEL).config.hidden)


def save(name: str, result: Mapping[str, Any], *, threads: int | None = None) -> None:
    """Write a result with the machine, versions and date, and print it."""
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
    """Time the sides block by block, A B A B …; the first is what the others are compared with.

    Args:
        clock: in seconds; `time.process_time` where other processes load the machine.

    Returns:
        Per side the median of the blocks' medians in ms; per other side the median of its speed-ups
        within a round, and the range of these.
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
