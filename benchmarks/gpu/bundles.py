"""Export bundles for the section `bundles` that are small enough to be carried to a GPU machine.

    python -m benchmarks.gpu.bundles -o FOLDER [--tiny]

The weights are random with 15 levels, so they compress to a sixth. The reference clip is a real clip with two frames of
context and two of horizon; after so few frames most of the recorded ring is zero, and zeros compress well. Writes one
bundle per precision policy of `KINDS`, named after it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.bench import FULL, TINY
from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM

KINDS = ("fp32", "tf32", "fp16")
"""Precision policy of each bundle."""
LEVELS = 15
"""Number of distinct values of a layer's weights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the bundles and return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.bundles", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--tiny", action="store_true", help="use the tiny model of --device cpu --quick")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for path in export_all(options.output, TINY if options.tiny else FULL):
        print(path)
    return 0


def export_all(folder: Path, config: ModelConfig) -> list[Path]:
    """Export a bundle of each kind, replacing bundles of the same name; return their paths."""
    paths = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "model.safetensors"
        checkpoint.save(coarse_model(config), source)
        for precision in KINDS:
            started = time.monotonic()
            path = folder / f"{precision}.e3d"
            export(source, path, context_length=2, horizon=2, precision=precision, overwrite=True)
            print(f"{path.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            paths.append(path)
    return paths


def coarse_model(config: ModelConfig) -> E3DLSTM:
    """Return a model whose weights are random with `LEVELS` levels."""
    torch.manual_seed(0)
    model = E3DLSTM(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                step = weights.abs().max() / (LEVELS // 2)
                weights.copy_((weights / step).round() * step)
    return model


if __name__ == "__main__":
    sys.exit(main())
