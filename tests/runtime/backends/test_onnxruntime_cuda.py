"""ONNX Runtime on a GPU: the logic of the backend on the CPU provider, and errors of the real library."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy import inventory
from e3d_deploy.errors import BackendUnavailable, BundleError, EngineError, ResourceLimit
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends import onnxruntime_cuda
from e3d_deploy.runtime.backends.onnxruntime_cuda import NO_GRAPH, OnnxRuntimeCudaBackend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, installed
from tests.fake_cuda import Machine
from tests.fake_tensorrt_runtime import floats, pictures, same
from tests.manifests import with_policy

NAME = "onnxruntime-cuda"


def test_results_equal_those_of_onnxruntime(any_batch: Path, on_cpu: Machine) -> None:
    bundle = Bundle.open(any_batch)
    gpu, cpu = open_backend(bundle, NAME), open_backend(bundle, "onnxruntime")
    assert (gpu.name, gpu.sizes, gpu.pads) == (NAME, bundle.sizes, True)
    ours, theirs = gpu.initial_state(2), cpu.initial_state(2)
    for frame in (*floats(5, 2), *pictures(5, 2)):
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-6)
    ours, theirs = gpu.gather([(ours, 1)]), cpu.gather([(theirs, 1)])
    for frame in floats(4):
        before = on_cpu.counts.copy()
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-6)
    assert (on_cpu.counts - before)["copy"] == 2, "one copy of the frame to the GPU and one of the prediction from it"
    for call in (
        lambda one, state: one.rollout(floats(1)[0], state),
        lambda one, _: one.clip(floats(4).swapaxes(0, 1)),
    ):
        (forecast, ours), (expected, theirs) = call(gpu, ours), call(cpu, theirs)
        np.testing.assert_allclose(forecast, expected, rtol=0, atol=1e-6)
    gpu.close()
    assert on_cpu.allocated == 0


def test_steps_are_equal_to_the_last_bit_where_shapes_are_fixed(exported: Path, on_cpu: Machine) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    gpu, cpu = open_backend(bundle, NAME), open_backend(bundle, "onnxruntime")
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    for frame in floats(6):
        _, ours = gpu.step(frame, ours)
        _, theirs = cpu.step(frame, theirs)
    same(gpu, ours, cpu, theirs)


def test_each_set_of_states_keeps_its_graph_number_and_binding(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    played: list[tuple[Any, int]] = []
    play = OnnxRuntimeCudaBackend._play

    def listen(self: Any, session: Any, binding: Any, *, number: int) -> None:
        played.append((binding, number))
        play(self, session, binding, number=number)

    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_play", listen)
    state = backend.initial_state()
    for frame in floats(6):
        _, state = backend.step(frame, state)
    backend.rollout(floats(1)[0], state)
    assert [number for _, number in played] == [1, 2, 1, 2, 1, 2, -1]
    assert played[0][0] is played[2][0] is played[4][0]
    assert played[1][0] is played[3][0] is played[5][0]


def test_the_provider_captures_the_step_in_our_stream_in_true_float32(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    monkeypatch.undo()
    options = {"device_id": "0", "user_compute_stream": "77", "enable_cuda_graph": "1", "use_tf32": "0"}
    assert backend._options("step") == options
    assert backend._options("clip") == options | {"enable_cuda_graph": "0"}
    backend.bundle = with_policy(backend.bundle, "tf32")
    assert backend._options("step")["use_tf32"] == "1"


def test_a_cpu_only_onnxruntime_names_the_remedy(exported: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime is built for GPUs")
    with pytest.raises(
        BackendUnavailable, match="built for the CPU only; pip uninstall -y onnxruntime && pip install"
    ) as caught:
        open_backend(Bundle.open(exported / "tiny.e3d"), NAME)
    assert caught.value.exit_code == 4
    assert NAME not in installed()


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_would_fall_back_to_the_cpu_is_refused(
    exported: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime for GPUs falls back to the CPU if CUDA's libraries do not load; with `STRICT` it refuses to."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime is built for GPUs")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    refusal = "does not run the whole graph on the GPU"
    with pytest.raises(BackendUnavailable, match=rf"{refusal}.*pip install 'onnxruntime-gpu"):
        OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    assert (machine.allocated, machine.counts["stream closed"]) == (0, 1)
    monkeypatch.setattr(onnxruntime_cuda, "STRICT", ("session.disable_cpu_ep_fallback", "0"))
    with pytest.raises(BackendUnavailable, match=rf"{refusal}.*\(providers: CPUExecutionProvider"):
        OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("Failed to allocate memory for requested buffer", ResourceLimit),
        ("CUDA failure 2: out of memory", ResourceLimit),
        ("CUBLAS_STATUS_ALLOC_FAILED", ResourceLimit),
        ("CUDNN", EngineError),
    ],
)
def test_a_failed_run_names_the_cause(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, words: str, error: type
) -> None:
    backend = OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))

    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    state = backend.initial_state()
    with pytest.raises(error, match=f"could not run the graph \\({words}"):
        backend.step(floats(1)[0], state)


def test_a_graph_that_does_not_load_is_named(exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    monkeypatch.setattr(Bundle, "onnx", lambda *_: b"")
    with pytest.raises(
        BundleError, match=r"step\.onnx: ONNX Runtime .* cannot load it .*; pip install --upgrade onnxruntime-gpu, or"
    ):
        OnnxRuntimeCudaBackend(bundle)


def test_gpu_backends_are_installed_only_with_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "has_library", lambda _: True)
    monkeypatch.setattr(inventory, "version_of", lambda _: "1")
    monkeypatch.setattr(inventory, "has_nvidia_driver", lambda: False)
    assert not [name for name in installed() if BACKENDS[name].device == "gpu"]
    monkeypatch.setattr(inventory, "has_nvidia_driver", lambda: True)
    assert installed()[:3] == ["tensorrt", "tensorrt-rtx", NAME]
    monkeypatch.setattr(inventory, "version_of", lambda _: None)
    assert NAME not in installed()


REFUSED_PADS = """Non-zero status code returned while running Conv node. Failed to initialize CUDNN Frontend
[cudnn_frontend] Error: No valid engine configs for ConvFwd_
with the cudnn frontend json:
{"post_padding":[1,1,1],"pre_padding":[0,1,1]}"""
"""Message of ONNX Runtime in microsoft/onnxruntime#26274, shortened."""


def failing_runs(monkeypatch: pytest.MonkeyPatch, words: str, *, numbers: set[int]) -> list[int]:
    """Make runs with these graph numbers fail; return a list to which the graph number of every run is appended."""
    played: list[int] = []
    play = OnnxRuntimeCudaBackend._play

    def fail(self: Any, session: Any, binding: Any, *, number: int) -> None:
        played.append(number)
        if number in numbers:
            raise self._not_run(words)
        play(self, session, binding, number=number)

    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_play", fail)
    return played


def test_a_graph_that_the_gpu_does_not_run_is_refused_on_opening(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_runs(monkeypatch, REFUSED_PADS, numbers={1, 2, -1})
    with pytest.raises(EngineError, match=r"engine configs for ConvFwd_\); .*--backend onnxruntime-cuda") as caught:
        OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    assert "pre_padding" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "cannot be captured" not in caplog.text, "the capture was not the cause"
    assert (on_cpu.allocated, on_cpu.counts["stream closed"]) == (0, 1)


@pytest.mark.parametrize("first", [1, 2], ids=["when it is opened", "later"])
def test_a_failed_capture_is_logged_once_and_steps_run_uncaptured(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    played = failing_runs(monkeypatch, "operation not permitted when stream is capturing", numbers={first})
    gpu, cpu = OnnxRuntimeCudaBackend(bundle), open_backend(bundle, "onnxruntime")
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    for frame in floats(5):
        _, ours = gpu.step(frame, ours)
        _, theirs = cpu.step(frame, theirs)
    same(gpu, ours, cpu, theirs)
    assert set(played[played.index(first) + 1 :]) == {-1}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot be captured as a CUDA graph" in warnings[0]
    assert "operation not permitted when stream is capturing" in warnings[0]
    monkeypatch.undo()
    assert gpu._options("step")["enable_cuda_graph"] == "0"


def test_a_batch_size_that_fails_uncaptured_too_leaves_capture_on_for_others(
    any_batch: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = OnnxRuntimeCudaBackend(Bundle.open(any_batch))
    state = backend.initial_state(2)
    with monkeypatch.context() as patch:
        assert failing_runs(patch, "an illegal memory access", numbers={1, 2, -1}) == []
        with pytest.raises(EngineError, match=r"illegal memory access\); load the bundle again"):
            backend.step(floats(1, 2)[0], state)
    assert (backend.captures, backend.sessions, backend.bindings) == (True, {}, {})
    played = failing_runs(monkeypatch, "", numbers=set())
    backend.step(floats(1, 2)[0], state)
    backend.step(floats(1)[0], backend.initial_state(1))
    assert NO_GRAPH not in played
    assert "cannot be captured" not in caplog.text


def test_a_session_that_refuses_to_capture_is_recreated_without_capture(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime's fallback, which retries on the CPU and prints the reason to stdout, is disabled."""
    asked: list[tuple[bool, Any]] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_options", lambda self, _: {"captures": str(self.captures)})

    def make(file: str, options: Any, *, providers: Any, **more: Any) -> Any:
        ((name, its),) = providers
        asked.append((its["captures"] == "True", more))
        if its["captures"] == "True":
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        return session(file, options, providers=[name], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    assert asked == [(True, {"enable_fallback": 0}), (False, {"enable_fallback": 0})]
    assert "This session cannot use the graph capture feature as requested by the user" in caplog.text


def test_the_reason_of_a_failed_session_is_reported(
    exported: Path, on_cpu: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its fallback, ONNX Runtime would print the reason and raise an error of the CPU provider instead."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 209: no kernel image is available for execution on the device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BundleError, match=r"cannot load it \(CUDA failure 209: no kernel image"):
        OnnxRuntimeCudaBackend(Bundle.open(exported / "tiny.e3d"))
    assert capsys.readouterr().out == ""
