"""Models whose states Triton keeps: a stand-in for the server gets the results of the runtime."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.bundle.plans import sources
from e3d_deploy.config import ModelConfig
from e3d_deploy.contract import FRAME, NEXT, PREDICTION, states_of
from e3d_deploy.errors import BackendUnavailable, BundleError
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle, load
from e3d_deploy.triton import contract
from e3d_deploy.triton.config import Flavour, Serving, text_of
from e3d_deploy.triton.implicit import _tensors
from e3d_deploy.triton.repository import write_repository
from tests.manifests import changed, rewrite, sidecar, with_graph
from tests.triton.configs import config_of
from tests.triton.implicit_server import ImplicitServer

FRAMES = 12
"""More frames than the ring has slots, and more than twice as many, so that its counter wraps."""
OTHER_SIZE = 1e-5
"""Tolerance for one or two streams in a call, as in test_streams_isolated.py."""


@pytest.fixture
def any_batch(any_batch: Path) -> Bundle:
    """Return the bundle whose graphs take any number of streams."""
    return Bundle.open(any_batch)


@pytest.fixture
def clips() -> list[NDArray[np.float32]]:
    """Return two clips [T, 1, C, H, W]."""
    values = np.random.default_rng(3).random((2, FRAMES, 1, 1, 16, 24), np.float32)
    return list(values)


def served(bundle: Bundle, output: Path, pairing: Literal["sorted", "named"]) -> ImplicitServer:
    (model,) = write_repository([bundle], output, flavours=["onnxruntime"], serving=Serving(threads=1))
    assert (model.flavour, model.renewal) == ("onnxruntime", "none")
    return ImplicitServer(output / model.name, pairing)


def expected(bundle: Bundle, clip: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the prediction of the runtime after each frame."""
    with load(bundle.path, "onnxruntime", threads=1) as predictor:
        stream = predictor.stream(renewal="none")
        predictions = []
        for frame in clip:
            stream.push(np.moveaxis(frame[0], 0, -1))
            predictions.append(np.array(stream.prediction).reshape(frame.shape))
        return predictions


@pytest.mark.parametrize("pairing", ["sorted", "named"])
@pytest.mark.parametrize("batch", ["1", "any"])
def test_interleaved_sequences_get_the_predictions_of_the_runtime(
    batch: str,
    pairing: Literal["sorted", "named"],
    request: pytest.FixtureRequest,
    clips: list[NDArray[np.float32]],
    tmp_path: Path,
) -> None:
    bundle = (
        request.getfixturevalue("any_batch")
        if batch == "any"
        else Bundle.open(request.getfixturevalue("exported") / "tiny.e3d")
    )
    server = served(bundle, tmp_path / "models", pairing)
    for number in range(2):
        server.start(number)
    got: list[list[NDArray[np.float32]]] = [[], []]
    for frames in zip(*clips, strict=True):
        for number, frame in enumerate(frames):
            got[number].append(server.step({number: frame})[number])
    for number, clip in enumerate(clips):
        np.testing.assert_array_equal(got[number], expected(bundle, clip))


def test_sequences_that_share_a_call_get_the_predictions_of_the_runtime(
    any_batch: Bundle, clips: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    server = served(any_batch, tmp_path / "models", "sorted")
    server.start(7)
    first = [server.step({7: clips[0][0]})[7]]
    server.start(8)  # a frame later, so that the streams have different ages
    both = [server.step({7: clips[0][t + 1], 8: clips[1][t]}) for t in range(FRAMES - 1)]
    for number, got in ((7, [*first, *(one[7] for one in both)]), (8, [one[8] for one in both])):
        wanted = expected(any_batch, clips[number - 7])[: len(got)]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=OTHER_SIZE)


def test_a_restarted_sequence_begins_with_the_initial_state(
    any_batch: Bundle, clips: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    server = served(any_batch, tmp_path / "models", "named")
    server.start(1)
    first = server.step({1: clips[0][0]})[1]
    server.step({1: clips[0][1]})
    server.start(1)
    np.testing.assert_array_equal(server.step({1: clips[0][0]})[1], first)


def test_only_the_counters_of_a_graph_for_batches_change(any_batch: Bundle, tmp_path: Path) -> None:
    write_repository([any_batch], tmp_path / "models", flavours=["onnxruntime"])
    version = tmp_path / "models" / "any_onnxruntime" / "1"
    graph = onnx.load(version / "model.onnx", load_external_data=False)
    onnx.checker.check_model(version / "model.onnx")
    before = onnx.load_model_from_string(any_batch.onnx("step", "onnxruntime")).graph
    shapes = [
        {
            value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
            for value in values
        }
        for one in (before, graph.graph)
        for values in (one.input, one.output)
    ]
    assert shapes[2] == shapes[0] | {"written": ["batch", 1]}
    assert shapes[3] == shapes[1] | {"next_written": ["batch", 1]}
    assert {one.name for one in version.iterdir()} == {"model.onnx", *any_batch.entry("step").weights}


def test_a_graph_for_one_stream_is_served_unchanged(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    (model,) = write_repository([bundle], tmp_path / "models", flavours=["onnxruntime"])
    assert (tmp_path / "models" / model.name / "1" / "model.onnx").read_bytes() == bundle.onnx("step", "onnxruntime")
    assert (config_of(tmp_path / "models" / model.name).max_batch_size, model.max_batch) == (0, 1)


def test_names_of_states_line_up_when_they_are_sorted_even_with_eleven_layers(any_batch: Bundle) -> None:
    """Servers with bug server#8586 pair the states by their sorted names."""
    config = ModelConfig(image_size=(16, 24), hidden=(4,) * 12)
    deep = changed(any_batch, states=())
    object.__setattr__(deep, "config", config)
    deep.__dict__["states"] = states_of(config)
    batching: Any = _tensors(deep, Serving(), batched=True)["sequence_batching"]
    pairs = [(one["input_name"], one["output_name"]) for one in batching["state"]]
    takes, returns = (sorted(names, key=str.encode) for names in zip(*pairs, strict=True))
    assert "hidden.10" in takes
    assert list(zip(takes, returns, strict=True)) == sorted(pairs)
    assert all(returned == NEXT + taken for taken, returned in pairs)
    assert "state {" in text_of({"sequence_batching": batching})


@pytest.mark.parametrize(("flavour", "first"), [("onnxruntime", FRAME), ("tensorrt", FRAME)])
def test_the_parameters_do_not_claim_the_contract_of_the_python_flavour(
    flavour: Flavour, first: str, bundle_path: Path, tmp_path: Path
) -> None:
    bundle = with_plan(bundle_path)
    (model,) = write_repository([bundle], tmp_path / "models", flavours=[flavour], serving=Serving(threads=3))
    config = config_of(tmp_path / "models" / model.name)
    assert (config.input[0].name, config.output[0].name) == (first, PREDICTION)
    assert contract.CONTRACT not in config.parameters
    assert config.parameters["e3d_bundle"].string_value == bundle.identity
    assert config.parameters["e3d_renewal"].string_value == "none"
    threads = config.parameters["intra_op_thread_count"].string_value
    assert threads == ("3" if flavour == "onnxruntime" else "")
    write_repository([bundle], tmp_path / "models", flavours=[flavour], overwrite=True)


def with_plan(path: Path, name: str = "step.tensorrt", **fields: Any) -> Bundle:
    """Return a bundle with a file in place of a plan of the step, in the form that `e3d build` writes."""
    (path / "engines").mkdir()
    plan = f"engines/{name}.plan"
    (path / plan).write_bytes(b"native code")
    bundle = Bundle.open(path)
    target = name.removeprefix("step.")
    one = sidecar(target=target, sha256=sha256(path / plan), **sources(bundle, "step", target), **fields)
    rewrite(
        path,
        engines={name: one},
        verification={target: Verification()},
        files={**bundle.manifest.files, plan: sha256(path / plan)},
    )
    return Bundle.open(path)


@pytest.mark.parametrize(
    ("parts", "profile"),
    [(None, []), ({"profile": "fixed"}, []), ({"profile": "1 1 1, 2 2 2"}, []), ({"profile": "2 2 2, 1 4 8"}, ["1"])],
)
def test_the_tensorrt_flavour_calls_the_plan_with_one_stream(
    parts: dict[str, str] | None, profile: list[str], bundle_path: Path, tmp_path: Path
) -> None:
    bundle = with_plan(bundle_path, parts=parts)
    (model,) = write_repository([bundle], tmp_path / "models", flavours=["tensorrt"])
    folder = tmp_path / "models" / "tiny_tensorrt"
    assert (folder / "1" / "model.plan").read_bytes() == b"native code"
    config = config_of(folder)
    assert (config.backend, config.max_batch_size, model.max_batch, model.device) == ("tensorrt", 0, 1, "gpu")
    assert [*config.input[0].dims] == [1, 1, 16, 24]
    states = {one.input_name: one for one in config.sequence_batching.state}
    assert [*states["written"].dims] == [1]
    assert (folder / "initial_state" / states["written"].initial_state[0].data_file).read_bytes() == b"\1\0\0\0"
    assert [*config.instance_group[0].profile] == profile


def test_the_tensorrt_flavour_requires_a_plan_of_tensorrt_for_one_stream(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"lists no engines, .* build one: `e3d build .* --target tensorrt`"):
        write_repository([Bundle.open(bundle_path)], tmp_path / "models", flavours=["tensorrt"])
    bundle = with_plan(bundle_path, "step.tensorrt-rtx")
    with pytest.raises(BundleError, match=r"lists step\.tensorrt-rtx, and Triton serves only plans of TensorRT; build"):
        write_repository([bundle], tmp_path / "models", flavours=["tensorrt"])
    assert not (tmp_path / "models").exists()


def test_a_plan_for_larger_batches_or_an_altered_plan_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_plan(bundle_path, parts={"profile": "4 8 16"})
    with pytest.raises(BundleError, match="takes 4 or more streams at once, and Triton calls it with one; build it"):
        write_repository([bundle], tmp_path / "models", flavours=["tensorrt"])
    rewrite(bundle_path, engines={"step.tensorrt": sidecar(**sources(bundle, "step", "tensorrt"))})
    with pytest.raises(BundleError, match="altered"):
        write_repository([Bundle.open(bundle_path)], tmp_path / "models", flavours=["tensorrt"])


def test_a_precision_that_onnx_runtime_does_not_run_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_graph(Bundle.open(bundle_path), "step", precision="bf16")
    with pytest.raises(BackendUnavailable, match="onnxruntime does not run bf16"):
        write_repository([bundle], tmp_path / "models", flavours=["python", "onnxruntime"])
    assert not (tmp_path / "models").exists()
