"""Every variant computes the same result as PyTorch, with the operators that one library runs fastest."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from e3d_deploy import checkpoint, contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.config import ModelConfig
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.export.graph import winograd
from e3d_deploy.export.graph.compose import clip_graph, step_graph
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, Variant, expand, uses_winograd
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime.backends.emulated import Steps, session
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.runtime.verify import verify
from tests.kept_steps import KeptSteps

CLOSE = 3e-5
"""Tolerance of predictions. Largest difference measured: 6.7e-6 with Winograd convolutions, 4.2e-6 without."""
ALL_VARIANTS = {
    **VARIANTS,
    **{f"{name}, direct": variant.without_winograd for name, variant in VARIANTS.items()},
}
CONFIGS = {
    "paper": ModelConfig(image_size=(32, 16), hidden=(4, 6), kernel_size=5, history_length=3),
    "google, three frames": ModelConfig(
        image_size=(16, 16), hidden=(4,), kernel_size=5, history_length=2, semantics="google", window_length=3
    ),
    "a grid that tiles do not cover": ModelConfig(image_size=(24, 20), hidden=(4,), kernel_size=5, history_length=3),
    "openstl": ModelConfig(image_size=(20, 20), hidden=(4, 4), history_length=3, semantics="openstl", stride=2),
}


def network(config: ModelConfig) -> E3DLSTM:
    torch.manual_seed(3)
    model = E3DLSTM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight)  # biases start at 0 and norms at 1, which would hide errors
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_variant_matches_the_model_from_the_first_frame_to_a_ring_written_twice(
    config: ModelConfig, steps: KeptSteps
) -> None:
    """One of the two streams is two frames older, so the streams have different numbers of keys."""
    model = network(config)
    core = steps(model, None)
    clip = np.random.default_rng(0).random((2, 2 * config.history_length + 3, *contract.frame(config).shape[1:]))
    in_pytorch = TorchBackend(model, batch=1)
    expected = [
        np.stack([found for found, _ in rollout(in_pytorch, one[None].astype(np.float32), len(one))]) for one in clip
    ]
    for name, variant in ALL_VARIANTS.items():
        graph = step_graph(expand(core, variant), config, None)
        one, two = (Steps(session(graph, threads=1), config, batch) for batch in (1, 2))
        older, found = one.initial_state(), [[], []]
        frames = clip.astype(np.float32)
        for frame in frames[0, :2]:
            prediction, older = one.step(frame[None], older)
            found[0].append(prediction)
        state = {key: np.concatenate([older[key], value]) for key, value in one.initial_state().items()}
        for first, second in zip(frames[0, 2:], frames[1], strict=False):
            predictions, state = two.step(np.stack([first, second]), state)
            for row in range(2):
                found[row].append(predictions[row : row + 1])
        for row in range(2):
            np.testing.assert_allclose(
                np.stack(found[row]), expected[row][: len(found[row])], rtol=0, atol=CLOSE, err_msg=name
            )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graphs_of_a_variant_are_valid(name: str, steps: KeptSteps) -> None:
    config, variant = CONFIGS["paper"], VARIANTS[name]
    core = expand(steps(network(config), None), variant)
    for graph in (step_graph(core, config, None), clip_graph(core, config, None, context_length=2, horizon=2)):
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}


def test_only_winograd_variants_transform_kernels_and_only_5x5_kernels(steps: KeptSteps) -> None:
    def transformed(config: ModelConfig, variant: Variant) -> int:
        core = expand(steps(network(config), None), variant)
        return sum("/winograd/points" in output for node in core.node for output in node.output)

    convolutions = 2 * 5  # five in each of two cells; the merges and the convolution to the frame are 1×1
    assert transformed(CONFIGS["paper"], VARIANTS["onnxruntime"]) == convolutions
    assert transformed(CONFIGS["paper"], VARIANTS["openvino"]) == convolutions
    assert transformed(CONFIGS["paper"], VARIANTS["openvino"].without_winograd) == 0
    assert transformed(CONFIGS["paper"], VARIANTS[PLAIN]) == 0
    for uncovered in ("a grid that tiles do not cover", "openstl"):
        assert transformed(CONFIGS[uncovered], VARIANTS["openvino"]) == 0


def correlation(tile: NDArray[Any], kernel: NDArray[Any]) -> NDArray[Any]:
    return np.array([tile[at : at + winograd.KERNEL] @ kernel for at in range(winograd.TILE)])


def test_minimal_filtering_is_exact_but_for_rounding() -> None:
    inputs, kernel, output = winograd.matrices()
    rng = np.random.default_rng(0)
    for _ in range(10):
        tile, taps = rng.standard_normal(winograd.POINTS), rng.standard_normal(winograd.KERNEL)
        np.testing.assert_allclose(output @ ((kernel @ taps) * (inputs @ tile)), correlation(tile, taps), atol=1e-12)


def test_tiles_along_an_axis_see_zeros_around_it() -> None:
    side = 8
    inputs, _, _ = winograd.matrices()
    line = np.random.default_rng(0).standard_normal(side)
    padded = np.pad(line, winograd.KERNEL // 2)
    tiles = np.stack([padded[at : at + winograd.POINTS] for at in (0, 4)], axis=1)
    np.testing.assert_allclose(winograd.of_tiles(side) @ line, inputs @ tiles, atol=1e-12)


def exported(model: E3DLSTM, folder: Path, seed: int = 0) -> Bundle:
    checkpoint.save(model, folder / "model.safetensors")
    height, width = model.config.image_size
    np.save(folder / "clip.npy", np.random.default_rng(seed).integers(0, 256, (7, height, width, 1), np.uint8))
    lengths: dict[str, Any] = {"context_length": 3, "horizon": 4, "batch": 1}
    return Bundle.open(export(folder / "model.safetensors", folder / "m.e3d", reference=folder / "clip.npy", **lengths))


@pytest.mark.parametrize(("share", "used"), [(0.0, False), (1e9, True)])
def test_winograd_is_used_if_the_rollout_stays_within_its_share_of_the_budget(
    tmp_path: Path, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch, share: float, used: bool
) -> None:
    monkeypatch.setattr(bundle_module, "export_core", steps)
    monkeypatch.setattr(bundle_module, "WINOGRAD_SHARE", share)
    bundle = exported(network(CONFIGS["paper"]), tmp_path)
    for backend in ("onnxruntime", "openvino"):
        graph = onnx.load(bundle.graph("step", backend), load_external_data=False).graph
        assert uses_winograd(graph) == used


@pytest.mark.parametrize("seed", [12, 16, 17])
def test_a_network_that_amplifies_rounding_keeps_direct_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: KeptSteps, seed: int
) -> None:
    """States were off by 7.3e-5 to 2.0e-4 with Winograd, and by at most 1.8e-5 without it; the limit is 1e-4."""
    monkeypatch.setattr(bundle_module, "export_core", steps)
    torch.manual_seed(seed)
    config = ModelConfig(
        image_size=(8, 8), patch_size=2, hidden=(4,), kernel_size=5, history_length=4, layer_norm=False
    )
    model = E3DLSTM(config).eval().requires_grad_(False)
    model.cells[0].input_conv.weight.mul_(70)
    bundle = exported(model, tmp_path, seed)
    for backend in ("onnxruntime", "openvino"):
        with open_backend(bundle, backend, threads=1) as opened:
            assert verify(bundle, opened).passed


def test_openvino_fuses_attention_into_one_kernel(
    tmp_path: Path, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend

    monkeypatch.setattr(bundle_module, "export_core", steps)
    bundle = exported(network(CONFIGS["paper"]), tmp_path)
    with OpenVINOBackend(bundle, threads=1) as backend:
        request = backend.requests["step", 1]
        nodes = [
            node.get_rt_info()["layerType"].value for node in request.get_compiled_model().get_runtime_model().get_ops()
        ]
    assert "Softmax" not in nodes
