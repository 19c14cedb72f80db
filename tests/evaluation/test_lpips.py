"""LPIPS compared with its definition written out in NumPy, on random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file

from e3d_deploy.cli import main
from e3d_deploy.errors import CheckpointError, ShapeError
from e3d_deploy.evaluation.lpips import lpips, lpips_convention

LPIPS = 1e-5  # relative, float32 against float64; measured 2.4e-8

Weights = dict[str, torch.Tensor]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    made: Weights = {"classifier.1.weight": torch.zeros(2)}  # torchvision's file contains more tensors than are needed
    for layer, (place, (N, C, side)) in enumerate(shapes.items()):
        made[f"features.{place}.weight"] = torch.randn(N, C, side, side) / (side * C**0.5)
        made[f"features.{place}.bias"] = torch.randn(N) / 10
        made[f"lin{layer}.model.1.weight"] = torch.rand(1, N, 1, 1)
    return made


@pytest.fixture(scope="module")
def path(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "mine.safetensors"
    save_file(weights, path)
    return path


def frames(channels: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(channels)
    return tuple(rng.random((2, 2, channels, 35, 40), np.float32))  # type: ignore[return-value]


def definition(one: Array, other: Array, weights: Weights) -> float:
    """Return the LPIPS of two frames [C, H, W] as the paper defines it."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}

    def convolve(x: Array, place: int, stride: int, padding: int) -> Array:
        kernel = w[f"features.{place}.weight"]
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
        return np.maximum(np.einsum("chwyx,ncyx->nhw", windows, kernel) + w[f"features.{place}.bias"][:, None, None], 0)

    def pool(x: Array) -> Array:
        return sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))

    def features(frame: Array) -> list[Array]:
        rgb = np.broadcast_to(frame, (3, *frame.shape[1:])).astype(np.float64) * 2 - 1
        scaled = np.stack([(rgb[0] + 0.030) / 0.458, (rgb[1] + 0.088) / 0.448, (rgb[2] + 0.188) / 0.450])
        first = convolve(scaled, 0, 4, 2)
        second = convolve(pool(first), 3, 1, 2)
        third = convolve(pool(second), 6, 1, 1)
        fourth = convolve(third, 8, 1, 1)
        return [first, second, third, fourth, convolve(fourth, 10, 1, 1)]

    total = 0.0
    for layer, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        a, b = (x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in (a, b))
        head = w[f"lin{layer}.model.1.weight"].reshape(-1, 1, 1)
        total += float(((a - b) ** 2 * head).sum(0).mean())
    return total


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_equals_its_definition(channels: int, weights: Weights, path: Path) -> None:
    one, other = frames(channels)
    found = lpips(path)(one, other)
    assert found.dtype == np.float64
    expected = [definition(*pair, weights) for pair in zip(one, other, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=LPIPS)
    assert (lpips(path)(one, one) == 0).all()


def test_a_pytorch_file_is_accepted_too(weights: Weights, path: Path, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "mine.pth")
    one, other = frames(1)
    assert np.array_equal(lpips(tmp_path / "mine.pth")(one, other), lpips(path)(one, other))


def test_invalid_weights_are_refused(weights: Weights, tmp_path: Path) -> None:
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(CheckpointError, match="no such file"):
            lpips(tmp_path / name)
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights, but long enough to be read as some")
        with pytest.raises(CheckpointError, match="not a file of tensors"):
            lpips(tmp_path / name)
    torch.save({"code": Path}, tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        lpips(tmp_path / "pickle.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is missing"):
        lpips(tmp_path / "tensor.pth")
    torch.save({name: tensor for name, tensor in weights.items() if "lin4" not in name}, tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match=r"lin4\.model\.1\.weight is missing"):
        lpips(tmp_path / "headless.pth")


def test_frames_that_alexnet_cannot_process_are_refused(path: Path) -> None:
    lpips(path)(*np.zeros((2, 1, 1, 31, 31), np.float32))
    for shape in ((1, 1, 30, 64), (1, 2, 64, 64)):
        with pytest.raises(ShapeError, match="omit --lpips"):
            lpips(path)(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


def test_its_table_names_the_weights(path: Path) -> None:
    from e3d_deploy.demo.exhibits import MODEL

    convention = lpips_convention(path)
    assert "mine.safetensors (sha256 " in convention.meaning
    arguments = ["evaluate", MODEL, "--most", 1, "--horizon", 1, "--lpips", path]
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert convention.meaning in result.stdout
    assert result.stdout.count("copy last, overall") == 3
