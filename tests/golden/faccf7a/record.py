"""Record a bundle, its snapshots and what commit faccf7a computes with them.

Run at the root of a checkout of that commit: python PATH/record.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch

from e3d_deploy import checkpoint, runtime
from e3d_deploy.config import ModelConfig
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM

AFTER = {"half_filled": 1, "wrapped": 5}
"""Frames before each snapshot; the ring has 3 slots, one of which holds the zero state at the start."""
HORIZON = 3

folder = Path(sys.argv[1])
torch.manual_seed(0)
config = ModelConfig(image_size=(4, 6), patch_size=2, hidden=(3, 2), kernel_size=3, history_length=3)
checkpoint.save(E3DLSTM(config), folder / "model.safetensors")
frames = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 1), np.uint8)
np.save(folder / "clip.npy", frames)
bundle = export(
    folder / "model.safetensors",
    folder / "tiny.e3d",
    context_length=3,
    horizon=2,
    reference=folder / "clip.npy",
)
(folder / "model.safetensors").unlink()
(folder / "clip.npy").unlink()

predictions, forecasts = [], []
with runtime.load(bundle, "onnxruntime", threads=1) as predictor:
    stream = predictor.stream()
    for pushed, picture in enumerate(frames, start=1):
        stream.push(picture)
        predictions.append(stream.prediction[0])
        forecasts.append(stream.forecast(HORIZON))
        for name, count in AFTER.items():
            if pushed == count:
                stream.snapshot().save(folder / f"{name}.npz")
np.savez_compressed(folder / "recorded.npz", frames=frames, predictions=predictions, forecasts=forecasts)
