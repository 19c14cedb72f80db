"""Exported graphs compute the same as PyTorch: step, rollout and clip, with an empty, full and overwritten ring."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from e3d_deploy import checkpoint, contract
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.diff import diff
from e3d_deploy.errors import CheckpointError, ClipError, ConfigError, ExportError, ShapeError
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.files import _system, sha256
from e3d_deploy.model import E3DLSTM, Convolution, OpenSTLConvolution, Recall
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.runtime.verify import check_contract, verify
from e3d_deploy.step import (
    REWRITES,
    FlatConvolution,
    FlatOpenSTLConvolution,
    PlainNorm,
    PlainRecall,
    Step,
    example,
)
from tests.kept_steps import KeptSteps
from tests.runtime.test_young_ring import assert_empty_slots_are_zeros

CLOSE = 3e-5
"""Tolerance of two ways to compute up to 12 steps; measured 4.3e-6, with states up to 4."""
LITTLE_VARIANCE = 5e-3
"""Tolerance of a norm whose input has a mean of 3 and a deviation of 0.001, of which float32 keeps four digits;
measured 5.3e-4."""

CASES = {
    # After 8 steps the ring of 4 was overwritten, and `written` was reduced once.
    "unequal layers, not square": ModelConfig(image_size=(16, 24), hidden=(4, 6), kernel_size=3, history_length=4),
    "google, colour, ring not full": ModelConfig(
        image_size=(16, 16), channels=3, hidden=(4, 4), kernel_size=5, semantics="google"
    ),
    "three frames in the window, no gate norms, ring just full": ModelConfig(
        image_size=(16, 16), hidden=(5,), kernel_size=3, window_length=3, layer_norm=False, history_length=9
    ),
    "openstl, no gate norms, not square": ModelConfig(
        image_size=(16, 24), hidden=(4, 4), history_length=4, semantics="openstl", layer_norm=False
    ),
    # A grid of 5×6 with a stride of 2: the convolution gives a grid of 3×3, which is resized.
    "openstl, colour, stride 2 on an odd grid": ModelConfig(
        image_size=(20, 24), channels=3, hidden=(4, 4), kernel_size=3, semantics="openstl", stride=2
    ),
    "openstl, no gate norms, stride 2": ModelConfig(
        image_size=(16, 16), hidden=(4,), semantics="openstl", stride=2, layer_norm=False
    ),
    "openstl, norms": ModelConfig(image_size=(16, 16), hidden=(4, 4), semantics="openstl"),
}
MANY = ("openstl, no gate norms, stride 2", "openstl, norms")
"""Cases that are exported for any number of streams; they are few, as this takes PyTorch more than twice as long."""
CONTEXT, HORIZON = 5, 4
GRAPHS = ("step", "rollout", "clip")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Bundle:
    torch.manual_seed(1)
    config = CASES[request.param]
    model = E3DLSTM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)  # biases start at 0 and norms at 1, which would hide errors
    folder = tmp_path_factory.mktemp("export")
    checkpoint.save(model, folder / "model.safetensors")
    rng = np.random.default_rng(0)
    clip = rng.random((CONTEXT + HORIZON, *config.image_size, config.channels), np.float32)
    np.save(folder / "clip.npy", clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        path = export(
            folder / "model.safetensors",
            folder / "case.e3d",
            context_length=CONTEXT,
            horizon=HORIZON,
            batch=None if request.param in MANY else 1,
            reference=folder / "clip.npy",
        )
    return Bundle.open(path)


def test_step_graph_equals_pytorch_at_every_step(case: Bundle) -> None:
    graph, in_pytorch = OnnxRuntimeBackend(case, threads=1), TorchBackend.of_bundle(case)
    state, expected_state = graph.initial_state(), in_pytorch.initial_state()
    rng = np.random.default_rng(2)
    for _ in range(12):
        frame = rng.random(contract.frame(case.config).shape, np.float32)
        prediction, state = graph.step(frame, state)
        expected, expected_state = in_pytorch.step(frame, expected_state)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=CLOSE)
        found, wanted = graph.to_arrays(state), in_pytorch.to_arrays(expected_state)
        assert set(found) == set(wanted) == {tensor.name for tensor in contract.states(case.config)}
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=CLOSE, err_msg=name)


@pytest.mark.parametrize("case", [next(iter(CASES))], indirect=True)
def test_a_float16_model_becomes_a_bundle_with_float32_weights_that_its_graphs_share(
    case: Bundle, tmp_path: Path
) -> None:
    model = checkpoint.load(case.path / "model.safetensors")
    checkpoint.save(model, tmp_path / "low.safetensors", dtype=torch.float16)
    lengths = {"context_length": CONTEXT, "horizon": HORIZON, "batch": 1, "reference": case.path / "../clip.npy"}
    bundle = Bundle.open(export(tmp_path / "low.safetensors", tmp_path / "low.e3d", **lengths))
    assert {weight.dtype for weight in load_file(bundle.path / "model.safetensors").values()} == {np.dtype(np.float32)}
    for name in GRAPHS:
        assert bundle.entry(name).weights == ("model.safetensors",)
        assert bundle.graph(name).stat().st_size == case.graph(name).stat().st_size  # the graph contains no weights
    assert verify(bundle, OnnxRuntimeBackend(bundle, threads=1), TorchBackend.of_bundle(bundle)).passed


def test_every_case_passes_verification(case: Bundle) -> None:
    report = verify(case, OnnxRuntimeBackend(case, threads=1), TorchBackend.of_bundle(case))
    assert report.passed
    assert report.worst < CLOSE


def test_no_convolution_pads_one_side_only_even_after_onnxruntime_optimizes(case: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime on CUDA cannot run convolutions with padding on only one side."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(case.graph("step"), options, providers=["CPUExecutionProvider"])
    for file in (case.graph("step"), case.graph("rollout"), case.graph("clip"), tmp_path / "optimized.onnx"):
        graph = onnx.load(file, load_external_data=False).graph
        assert any(node.op_type == "Conv" for node in graph.node)
        for node in (node for node in graph.node if node.op_type == "Conv"):
            pads = next((list(one.ints) for one in node.attribute if one.name == "pads"), [])
            assert pads[: len(pads) // 2] == pads[len(pads) // 2 :], node.name


def test_clip_graph_equals_step_loop_with_final_states(case: Bundle) -> None:
    context = case.reference()["frames"][None, :CONTEXT]
    backend = OnnxRuntimeBackend(case, threads=1)
    forecast, after = backend.clip(context)
    state, predictions = backend.initial_state(), []
    for t in range(CONTEXT + HORIZON - 1):
        frame = context[:, t] if t < CONTEXT else predictions[-1]
        prediction, state = backend.step(frame, state)
        predictions.append(prediction)
    np.testing.assert_allclose(forecast[0], np.concatenate(predictions[-HORIZON:]), rtol=0, atol=CLOSE)
    found = backend.to_arrays(after)
    for name, value in backend.to_arrays(state).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=CLOSE, err_msg=name)
    assert_empty_slots_are_zeros(found)


@pytest.mark.parametrize("pushed", [1, 3, 4, 11], ids=lambda pushed: f"{pushed} pictures seen")
def test_rollout_equals_steps_at_any_age(case: Bundle, pushed: int) -> None:
    """The ages cover a ring that is not full and one that was overwritten more than once."""
    backend = OnnxRuntimeBackend(case, threads=1)
    state = backend.initial_state()
    shape = contract.frame(case.config).shape
    for frame in np.random.default_rng(pushed).random((pushed, *shape), np.float32):
        prediction, state = backend.step(frame, state)
    before = backend.to_arrays(state)
    forecast, after = backend.rollout(prediction, state)
    expected = [prediction]
    for _ in range(HORIZON - 1):
        prediction, state = backend.step(prediction, state)
        expected.append(prediction)
    np.testing.assert_allclose(forecast, np.stack(expected, axis=1), rtol=0, atol=CLOSE)
    rolled = backend.to_arrays(after)
    for name, value in backend.to_arrays(state).items():
        np.testing.assert_allclose(rolled[name], value, rtol=0, atol=CLOSE, err_msg=name)
    assert_empty_slots_are_zeros(rolled)
    assert all(not np.array_equal(before[name], value) for name, value in rolled.items() if name.startswith("cell"))


def test_graphs_are_valid_and_share_the_weights_of_the_model_file(case: Bundle) -> None:
    check_contract(case)
    parameters = dict(checkpoint.load(case.path / "model.safetensors").named_parameters())
    for name in GRAPHS:
        onnx.checker.check_model(case.graph(name), full_check=True)
        graph = onnx.load(case.graph(name), load_external_data=False).graph
        external = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
        # The graph itself contains constants, and small weights that the exporter has folded.
        inside = sum(len(one.raw_data) for one in graph.initializer)
        assert external <= set(parameters)
        assert {name for name, weight in parameters.items() if weight.numel() > 9000} <= external
        assert inside < 300_000


def test_states_in_and_out_sort_alike(case: Bundle) -> None:
    """Servers pair states by order, and would otherwise swap them."""
    step = case.entry("step")
    ins = sorted(tensor.name for tensor in step.inputs if tensor.name != contract.FRAME)
    outs = sorted(tensor.name for tensor in step.outputs if tensor.name != contract.PREDICTION)
    assert [contract.NEXT + name for name in ins] == outs


def test_the_reference_has_pytorchs_predictions(case: Bundle) -> None:
    reference = case.reference()
    model = checkpoint.load(case.path / "model.safetensors")
    context = torch.from_numpy(reference["frames"][None, :CONTEXT])
    with torch.no_grad():
        expected = model(context, HORIZON)[0].numpy()
        exact = model.double()(context.double(), HORIZON)[0].numpy()
    np.testing.assert_array_equal(reference["predictions"], expected)
    assert case.manifest.rounding.predictions == pytest.approx(np.abs(expected - exact).max(), rel=1e-3)


def test_graphs_that_run_two_streams_at_once_keep_them_apart(exported: Path, two_streams: Path) -> None:
    """The streams differ in age, and the ring of one is not full."""
    one, two = (OnnxRuntimeBackend(Bundle.open(path), threads=1) for path in (exported / "tiny.e3d", two_streams))
    frames = np.random.default_rng(0).random((7, 2, 1, 16, 24), np.float32)
    young, old = one.initial_state(), one.initial_state()
    for frame in frames[:5]:
        _, old = one.step(frame[:1], old)
    arrays = one.to_arrays(old), one.to_arrays(young)
    together = two.from_arrays({name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})
    for frame in frames[5:]:
        expected_old, old = one.step(frame[:1], old)
        expected_young, young = one.step(frame[1:], young)
        found, together = two.step(frame, together)
        np.testing.assert_allclose(found, np.concatenate([expected_old, expected_young]), rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(
        two.to_arrays(together)["written"], [*one.to_arrays(old)["written"], *one.to_arrays(young)["written"]]
    )
    context = np.ascontiguousarray(frames[:4].swapaxes(0, 1))
    np.testing.assert_allclose(
        two.clip(context)[0], np.concatenate([one.clip(clip[None])[0] for clip in context]), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize("semantics", ["google", "openstl"])
@pytest.mark.parametrize("norm_eps", [1e-12, 1e-5])
def test_first_step_of_zero_states(
    tmp_path: Path, norm_eps: float, semantics: Semantics, caplog: pytest.LogCaptureFixture
) -> None:
    """With zero states and zero biases the variance is 0, and only epsilon prevents a division by 0 in the norms."""
    config = ModelConfig(image_size=(16, 16), hidden=(4,), kernel_size=3, norm_eps=norm_eps, semantics=semantics)
    checkpoint.save(E3DLSTM(config), tmp_path / "m.safetensors")
    clip = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    clip[0] = 0
    np.save(tmp_path / "dark.npy", clip)
    path = export(
        tmp_path / "m.safetensors",
        tmp_path / "m.e3d",
        context_length=2,
        horizon=2,
        batch=1,
        reference=tmp_path / "dark.npy",
    )
    bundle = Bundle.open(path)
    assert verify(bundle, OnnxRuntimeBackend(bundle, threads=1)).worst < CLOSE
    assert "constant folding" not in caplog.text  # the memory stays zero, and its convolution was folded at export


@pytest.mark.parametrize("window_length", [1, 2, 3])
def test_flat_convolution_equals_the_3d_one(window_length: int) -> None:
    torch.manual_seed(5)
    convolution = Convolution(3, 5, 5)
    window = torch.randn(2, 3, window_length, 6, 8)
    torch.testing.assert_close(FlatConvolution(convolution)(window), convolution(window), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("grid", [(6, 8), (5, 7)])
def test_flat_openstl_convolution_equals_the_3d_one(grid: tuple[int, int], stride: int) -> None:
    torch.manual_seed(5)
    convolution = OpenSTLConvolution(3, 5, 5, stride)
    window = torch.randn(2, 3, 2, *grid)
    found = FlatOpenSTLConvolution(convolution)(window)
    assert found.shape == (2, 5, 2, *grid)
    torch.testing.assert_close(found, convolution(window), rtol=0, atol=CLOSE)


def test_plain_norm_equals_group_norm_on_little_and_on_no_variance() -> None:
    torch.manual_seed(5)
    norm = torch.nn.GroupNorm(1, 6, eps=1e-12)
    torch.nn.init.normal_(norm.weight)
    for x in (torch.randn(2, 6, 2, 4, 5), 3 + 1e-3 * torch.randn(2, 6, 2, 4, 5), torch.zeros(2, 6, 2, 4, 5)):
        expected = torch.nn.functional.group_norm(x.double(), 1, norm.weight.double(), norm.bias.double(), 1e-12)
        torch.testing.assert_close(PlainNorm(norm)(x).double(), expected, rtol=0, atol=LITTLE_VARIANCE)


def test_plain_norm_equals_layer_norm_with_a_scale_per_position() -> None:
    torch.manual_seed(5)
    norm = torch.nn.LayerNorm((6, 2, 4, 5))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for x in (torch.randn(2, 6, 2, 4, 5), torch.zeros(2, 6, 2, 4, 5)):
        torch.testing.assert_close(PlainNorm(norm)(x), norm(x), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("semantics", ["paper", "openstl"])
def test_plain_recall_equals_recall_and_hides_empty_slots(semantics: Semantics) -> None:
    torch.manual_seed(5)
    gate, history = torch.rand(2, 4, 2, 3, 5), torch.randn(2, 3, 30, 4)
    padded = torch.cat([history, torch.zeros(2, 2, 30, 4)], dim=1).flatten(1, 2)
    bias = torch.zeros(2, 1, 150)
    bias[:, :, 90:] = -torch.inf
    found, expected = PlainRecall(semantics)(gate, (padded, bias)), Recall(semantics)(gate, history.unbind(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(("steps", "written"), [(0, 1), (6, 7), (7, 4), (8, 5), (11, 4)])
def test_written_is_reduced_by_the_ring_length(steps: int, written: int) -> None:
    assert contract.written_after(steps, history_length=4) == written


def test_the_manifest_describes_the_export(case: Bundle) -> None:
    manifest = json.loads((case.path / "manifest.json").read_text())
    assert ModelConfig.from_dict(manifest["config"]) == case.config
    assert manifest["history"]["exact_for_steps"] == case.config.history_length
    own = {"tensorrt": ["tensorrt", "tensorrt-rtx"], "openvino": ["openvino"]}
    # Without Winograd convolutions the variant of ONNX Runtime equals the shared graphs.
    if case.config.kernel_size == 5 and case.config.semantics != "openstl":
        own["onnxruntime"] = ["onnxruntime"]
    listed = {f"{graph}.{name}.onnx": backends for name, backends in own.items() for graph in GRAPHS}
    listed |= {f"{graph}.onnx": None for graph in GRAPHS}
    assert {one["file"]: one["backends"] for one in manifest["graphs"]} == listed
    assert set(manifest["files"]) == {"model.safetensors", "reference.npz", *listed}
    assert [one["name"] for one in manifest["graphs"]] == list(GRAPHS) * (1 + len(own))
    assert case.entry("clip").inputs[0].shape[1] == CONTEXT


@pytest.mark.parametrize("option", ["context_length", "horizon", "batch"])
def test_lengths_below_one_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match="got 0, expected a whole number of 1 or more"):
        export(tmp_path / "m.safetensors", tmp_path / "o.e3d", **{option: 0})


def test_a_failed_export_leaves_nothing(tmp_path: Path, tiny_model: E3DLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tiny_model, tmp_path / "m.safetensors")

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(bundle_module, "export_core", fail)
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 24, 1), np.uint8))
    with pytest.raises(MemoryError):
        export(tmp_path / "m.safetensors", tmp_path / "o.e3d", reference=tmp_path / "clip.npy")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.npy", "m.safetensors"]


def test_a_model_that_predicts_nan_is_refused(tmp_path: Path, tiny_model: E3DLSTM) -> None:
    tiny_model.to_patch.weight.fill_(3e38)  # finite, but its products are not
    checkpoint.save(tiny_model, tmp_path / "m.safetensors")
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (4, 16, 24, 1), np.uint8))
    with pytest.raises(ExportError, match="predicts NaN or infinity on the reference clip"):
        export(
            tmp_path / "m.safetensors",
            tmp_path / "o.e3d",
            context_length=2,
            horizon=2,
            reference=tmp_path / "clip.npy",
        )
    assert not (tmp_path / "o.e3d").exists()


@pytest.mark.usefixtures("kept_steps")
def test_a_bundle_is_not_overwritten_unasked(tmp_path: Path, tiny_model: E3DLSTM) -> None:
    checkpoint.save(tiny_model, tmp_path / "m.safetensors")
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (4, 16, 24, 1), np.uint8))
    output = tmp_path / "o.e3d"

    def again(*, overwrite: bool) -> None:
        export(
            tmp_path / "m.safetensors",
            output,
            context_length=2,
            horizon=2,
            batch=1,
            reference=tmp_path / "clip.npy",
            overwrite=overwrite,
        )

    again(overwrite=False)
    with pytest.raises(ConfigError, match="already exists; give --overwrite"):
        again(overwrite=False)
    (output / "engines").mkdir()
    again(overwrite=True)
    assert not (output / "engines").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"clip.npy", "m.safetensors", "o.e3d"}
    (output / "manifest.json").unlink()  # without it the folder is not a bundle, and must not be removed
    with pytest.raises(ConfigError, match="already exists and is not a bundle"):
        again(overwrite=True)
    assert (output / "step.onnx").exists()


@pytest.mark.usefixtures("kept_steps")
def test_a_link_to_a_bundle_stays_and_killed_exports_leave_nothing(exported: Path, tmp_path: Path) -> None:
    output, link = tmp_path / "o.e3d", tmp_path / "link.e3d"
    left = tmp_path / f".o.e3d.{_system()}abcd1234.partial"
    left.mkdir()
    options: dict[str, Any] = {"context_length": 4, "horizon": 3, "batch": 1, "reference": exported / "clip.npy"}
    export(exported / "tiny.safetensors", output, **options)
    assert not left.exists()
    link.symlink_to("o.e3d")
    (output / "extra").touch()
    assert export(exported / "tiny.safetensors", link, overwrite=True, **options) == link
    assert link.is_symlink()
    assert not (output / "extra").exists()
    assert Bundle.open(link).manifest.name == "o"
    assert {path.name for path in tmp_path.iterdir()} == {"o.e3d", "link.e3d"}


def test_a_bundle_is_not_named_like_a_file(tmp_path: Path, tiny_model: E3DLSTM) -> None:
    checkpoint.save(tiny_model, tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match=r"a bundle is a folder; name it .*o\.e3d"):
        export(tmp_path / "m.safetensors", tmp_path / "o.onnx", batch=1, context_length=2, horizon=2)
    assert not (tmp_path / "o.onnx").exists()


def test_wrong_inputs_are_refused_before_anything_is_made(tmp_path: Path, tiny_model: E3DLSTM) -> None:
    checkpoint.save(tiny_model, tmp_path / "m.safetensors")
    np.save(tmp_path / "short.npy", np.zeros((3, 16, 24, 1), np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((30, 64, 64, 1), np.uint8))
    with pytest.raises(ClipError, match="has 3 frames, expected 20 or more"):
        export(tmp_path / "m.safetensors", tmp_path / "o.e3d", reference=tmp_path / "short.npy")
    with pytest.raises(ShapeError, match=r"expected \[16, 24, 1\]"):
        export(tmp_path / "m.safetensors", tmp_path / "o.e3d", reference=tmp_path / "large.npy")
    (tmp_path / "text.safetensors").write_text("not a model")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        export(tmp_path / "text.safetensors", tmp_path / "o.e3d")
    assert not (tmp_path / "o.e3d").exists()


@pytest.mark.slow
def test_the_full_size_model_exports_and_verifies(tmp_path: Path) -> None:
    """A network with random weights amplifies rounding, so PyTorch's own errors set its budget (docs/model.md)."""
    torch.manual_seed(0)
    checkpoint.save(E3DLSTM(ModelConfig()), tmp_path / "full.safetensors")
    bundle = Bundle.open(export(tmp_path / "full.safetensors", tmp_path / "full.e3d"))
    report = verify(bundle, OnnxRuntimeBackend(bundle))
    assert report.passed
    assert report.worst < 1e-3  # measured 1.4e-4 and 2.3e-4 on two seeds


def test_graphs_take_any_number_of_streams(exported: Path, any_batch: Path) -> None:
    assert_streams_stay_apart(exported / "tiny.e3d", any_batch)


@pytest.mark.slow
@pytest.mark.parametrize("semantics", ["google", "openstl"])
def test_graphs_of_other_semantics_take_any_number_of_streams(tmp_path: Path, semantics: Semantics) -> None:
    torch.manual_seed(2)
    config = ModelConfig(image_size=(16, 24), hidden=(4, 4), kernel_size=3, history_length=3, semantics=semantics)
    checkpoint.save(E3DLSTM(config), tmp_path / "m.safetensors")
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (6, 16, 24, 1), np.uint8))
    options: dict[str, Any] = {"context_length": 3, "horizon": 3, "reference": tmp_path / "clip.npy"}
    assert_streams_stay_apart(
        *(export(tmp_path / "m.safetensors", tmp_path / f"{n}.e3d", batch=n, **options) for n in (1, None))
    )


def assert_streams_stay_apart(alone: Path, together_path: Path) -> None:
    """Compare a bundle for one stream with a bundle of the same network for any number of streams."""
    one, many = (OnnxRuntimeBackend(Bundle.open(path), threads=1) for path in (alone, together_path))
    assert verify(many.bundle, many).passed
    assert {tensor.shape[0] for tensor in many.bundle.entry("clip").outputs} == {"batch"}
    frames = np.random.default_rng(1).random((5, 3, 1, 16, 24), np.float32)
    singles = [one.initial_state() for _ in range(3)]
    together = many.initial_state(3)
    for frame in frames:
        steps = [one.step(frame[n : n + 1], singles[n]) for n in range(3)]
        singles = [state for _, state in steps]
        prediction, together = many.step(frame, together)
        np.testing.assert_allclose(prediction, np.concatenate([each for each, _ in steps]), rtol=0, atol=CLOSE)
    rolled = [one.rollout(each, state) for each, state in steps]
    forecast, _ = many.rollout(prediction, together)
    np.testing.assert_allclose(forecast, np.concatenate([each for each, _ in rolled]), rtol=0, atol=CLOSE)
    context = np.ascontiguousarray(frames[: one.bundle.context_length].swapaxes(0, 1))
    clips = [one.clip(clip[None]) for clip in context]
    forecast, after = many.clip(context)
    np.testing.assert_allclose(forecast, np.concatenate([each for each, _ in clips]), rtol=0, atol=CLOSE)
    for name, value in many.to_arrays(after).items():
        expected = np.concatenate([one.to_arrays(state)[name] for _, state in clips])
        np.testing.assert_allclose(value, expected, rtol=0, atol=CLOSE, err_msg=name)


# Each layer has convolutions of the hidden state, of the input, two of the output gate and, with `paper` semantics, one
# of the memory. Each is two nodes, one per frame of the window, except OpenSTL's, which are one node. One convolution
# per layer merges, and one in all makes the frame.
@pytest.mark.parametrize(
    ("case", "convolutions"),
    [("unequal layers, not square", 23), ("google, colour, ring not full", 19), ("openstl, norms", 11)],
    indirect=["case"],
)
def test_a_memory_that_stays_zero_is_not_computed(case: Bundle, convolutions: int) -> None:
    nodes = onnx.load(case.graph("step"), load_external_data=False).graph.node
    assert len(case.config.hidden) == 2
    assert sum(node.op_type == "Conv" for node in nodes) == convolutions


def test_export_is_the_same_twice(exported: Path, tmp_path: Path) -> None:
    lengths = {"context_length": 4, "horizon": 3, "batch": 1, "reference": exported / "clip.npy"}
    bundles = (exported / "tiny.e3d", export(exported / "tiny.safetensors", tmp_path / "again.e3d", **lengths))
    files = [json.loads((path / "manifest.json").read_text())["files"] for path in bundles]
    assert files[0] == files[1]
    assert diff(*bundles)["differs_in"] == []


@pytest.mark.parametrize("semantics", ["paper", "google", "openstl"])
@pytest.mark.parametrize("window_length", [2, 3])
def test_each_rewrite_computes_the_same(semantics: Semantics, window_length: int) -> None:
    if semantics == "openstl" and window_length == 3:
        pytest.skip("OpenSTL's window is 2")
    torch.manual_seed(3)
    config = ModelConfig(
        image_size=(16, 24), hidden=(4, 4), kernel_size=3, semantics=semantics, window_length=window_length
    )
    model = E3DLSTM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        inputs = [torch.randn_like(one) for one in example(config, 2)]
        if semantics != "paper":
            inputs[-2].zero_()  # the memory, which stays zero with these semantics
        plain = Step(model, rewrites=())(*inputs)
        for name in REWRITES:
            for expected, found in zip(plain, Step(model, rewrites=(name,))(*inputs), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE, msg=name)


@pytest.mark.usefixtures("kept_steps")
def test_an_export_for_one_backend_has_only_its_own_graphs(exported: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"context_length": 3, "horizon": 2, "batch": 1}
    bundle = Bundle.open(export(exported / "tiny.safetensors", tmp_path / "t.e3d", backend="tensorrt-rtx", **options))
    assert [one.file for one in bundle.manifest.graphs if one.backends] == [
        "step.tensorrt.onnx",
        "rollout.tensorrt.onnx",
        "clip.tensorrt.onnx",
    ]
    assert {one.backends for one in bundle.manifest.graphs} == {None, ("tensorrt", "tensorrt-rtx")}  # same graphs
    assert bundle.graph("step", "openvino") == bundle.graph("step")
    cuda = Bundle.open(export(exported / "tiny.safetensors", tmp_path / "c.e3d", backend="onnxruntime-cuda", **options))
    assert {one.backends for one in cuda.manifest.graphs} == {None}


def test_settings_of_a_program_in_pytorch_do_not_affect_a_bundle(exported: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            bundle = export(
                exported / "tiny.safetensors",
                tmp_path / "tiny.e3d",
                context_length=4,
                horizon=3,
                batch=1,
                reference=exported / "clip.npy",
            )
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("step.onnx", "clip.onnx", "rollout.onnx", "reference.npz", "model.safetensors"):
        assert sha256(bundle / name) == sha256(exported / "tiny.e3d" / name), name
