"""Files that the code blocks of the docs use, as tiny files of the same names.

To let a block use another file, add it to `FILES` or `CHECKPOINTS`; to let Python use another name, add it to `names`.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.write import write_clips
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM
from tests.docs.blocks import ROOT

CONFIG = ModelConfig(image_size=(64, 64), patch_size=16, hidden=(4, 6), kernel_size=3, history_length=12)
"""Network of every model and bundle."""
BUNDLE, MODEL, VIDEO, ARRAY = "tiny.e3d", "tiny.safetensors", "tiny.mp4", "tiny.npy"
FILES = {
    **dict.fromkeys(("demo.e3d", "digits.e3d", "film.e3d", "full.e3d", "model.e3d", "small.e3d"), BUNDLE),
    **dict.fromkeys(("demo-output/digits.e3d", "demo-output/film.e3d"), BUNDLE),
    **dict.fromkeys(("model.safetensors", "runs/small/model.safetensors"), MODEL),
    **dict.fromkeys(("clip.mp4", "film.mp4", "walk.mp4", "demo-output/pedestrians.mp4"), VIDEO),
    **dict.fromkeys(("clips/1.mp4", "clips/2.mp4", "clips/3.mp4", "clips/4.mp4"), VIDEO),
    "clip.npy": ARRAY,
}
"""Path in the folder of a page, and the file of which it is a copy."""
GOLDEN = ROOT / "tests" / "golden" / "checkpoint_A_released"
CHECKPOINTS = {
    "model.ckpt-80000.index": GOLDEN / "model.ckpt-5.index",
    "model.ckpt-80000.data-00000-of-00001": GOLDEN / "model.ckpt-5.data-00000-of-00001",
    "original.npz": GOLDEN / "predictions.npz",
}
"""Path in the folder of a page, and the file of the repository of which it is a copy."""


def pictures(count: int) -> Any:
    """Return pictures [T, H, W, C] of a square that moves to the right."""
    video = np.zeros((count, *CONFIG.image_size, CONFIG.channels), np.uint8)
    for index, picture in enumerate(video):
        picture[20:40, index : index + 20] = 200
    return video + np.random.default_rng(0).integers(0, 20, video.shape, np.uint8)


def write_originals(folder: Path) -> None:
    """Write the files that `FILES` copies."""
    torch.manual_seed(0)
    video = pictures(40)
    np.save(folder / ARRAY, video)
    write_clips(folder / VIDEO, np.moveaxis(video[None] / np.float32(255), -1, 2))
    checkpoint.save(E3DLSTM(CONFIG), folder / MODEL)
    export(folder / MODEL, folder / BUNDLE, reference=folder / ARRAY)


def lay_out(originals: Path, folder: Path, made: set[str]) -> None:
    """Copy the files into the folder of a page, except those that the page makes itself."""
    sources = {**{name: originals / original for name, original in FILES.items()}, **CHECKPOINTS}
    for name, source in sources.items():
        if not made & {name, *map(str, Path(name).parents)}:
            place(source, folder / name)
    (folder / "token").write_text("secret\n")


def place(original: Path, copy: Path) -> None:
    """Copy a file or a folder, and make the folders above it."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if original.is_dir() else shutil.copyfile)(original, copy)


def names() -> Mapping[str, Any]:
    """Return the names that Python blocks use without defining them."""
    video = pictures(24)
    return {"camera": video, "cameras": [video, video]}
