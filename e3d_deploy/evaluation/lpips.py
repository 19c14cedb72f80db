"""LPIPS version 0.1 on AlexNet. The user supplies the weights; this package contains none.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018;
richzhang/PerceptualSimilarity lpips/lpips.py.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from e3d_deploy.errors import CheckpointError, CheckpointMissing, ShapeError
from e3d_deploy.evaluation.conventions import Convention, Measure, clipped
from e3d_deploy.files import sha256
from e3d_deploy.frames import Frames

LAYERS = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
"""Shape of the weight of each convolution, by the index of the convolution in torchvision's `alexnet().features`."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Offset that is subtracted from each colour in [-1, 1], and divisor that is applied after the subtraction."""
SMALLEST = 31
"""Minimum side of a frame (pixels), which AlexNet's strides and pools reduce to one pixel."""


def lpips_convention(path: Path) -> Convention:
    """Return LPIPS as a convention of its own, because LPIPS is computed in the same way under every convention.

    Args:
        path: .safetensors or PyTorch file with the tensors of torchvision's AlexNet (`features.0.weight`,
            `features.0.bias`, …) and of the LPIPS heads (`lin0.model.1.weight`, …).

    Raises:
        CheckpointError: `path` does not exist, is not a file of tensors, or lacks one of these tensors.
    """
    distance = lpips(path)
    return Convention(
        name="lpips",
        meaning=f"LPIPS 0.1 on AlexNet with the weights of {path.name} (sha256 {sha256(path)[:12]}…): predictions "
        "clipped to [0, 1], gray as three equal colours, scaled to [-1, 1]; mean over frames and sequences.",
        measures={
            "lpips": Measure(function=clipped(distance), meaning="distance of deep features, 0 for equal frames")
        },
    )


def lpips(path: Path) -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]:
    """Return a function that computes the LPIPS distance of frames [T, C, H, W] in [0, 1], one number per frame, [T].

    The returned function raises ShapeError if a side of the frames is below 31 pixels, or if they do not have 1 or 3
    colours.

    Raises:
        CheckpointError: as for `lpips_convention`.
    """
    weights = _read(path)

    @torch.inference_mode()
    def distance(prediction: Frames, truth: Frames) -> NDArray[np.float64]:
        _check(truth)
        total = torch.zeros(len(truth))
        for layer, (one, other) in enumerate(
            zip(_features(prediction, weights), _features(truth, weights), strict=True)
        ):
            difference = (_unit(one) - _unit(other)).square()
            head = weights[f"lin{layer}.model.1.weight"]
            total += F.conv2d(difference, head).mean((1, 2, 3))
        return total.double().numpy()

    return distance


def _features(frames: Frames, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Return AlexNet's features after the ReLU of each of its five convolutions; each entry is [T, N, h, w]."""
    x = torch.from_numpy(np.ascontiguousarray(frames, np.float32)) * 2 - 1
    x = x.expand(-1, 3, -1, -1)
    x = (x - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
    features = []
    for layer, place in enumerate(LAYERS):
        if layer in (1, 2):
            x = F.max_pool2d(x, 3, stride=2)
        stride, padding = (4, 2) if layer == 0 else (1, 2 if layer == 1 else 1)
        x = F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], stride, padding).relu()
        features.append(x)
    return features


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path}: no such file; give a file with LPIPS weights") from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: not a file of tensors; give a .safetensors file or one written by torch.save"
        ) from error
    expected: dict[str, tuple[int, ...]] = {}
    for layer, (place, shape) in enumerate(LAYERS.items()):
        expected |= {f"features.{place}.weight": shape, f"features.{place}.bias": shape[:1]}
        expected[f"lin{layer}.model.1.weight"] = (1, shape[0], 1, 1)
    for name, size in expected.items():
        there = found.get(name) if isinstance(found, dict) else None
        if not isinstance(there, Tensor) or tuple(there.shape) != size:
            raise CheckpointError(
                f"{path}: {name} is missing or not {list(size)}; put torchvision's AlexNet features and the heads "
                "lin0 … lin4 of LPIPS 0.1 into one file"
            )
    return {name: found[name].float() for name in expected}


def _check(frames: Frames) -> None:
    _, C, H, W = frames.shape
    if C not in (1, 3) or min(H, W) < SMALLEST:
        raise ShapeError(
            f"lpips: got frames of {C} colours and {H}×{W} pixels, expected 1 or 3 colours and {SMALLEST} pixels or "
            "more; omit --lpips"
        )
