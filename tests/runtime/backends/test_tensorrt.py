"""The TensorRT backend on a fake GPU.

`fake_cuda` and `fake_tensorrt_runtime` compute on the CPU, so that results can be compared with the ONNX Runtime
backend, and count their calls.
"""

import importlib.util
import inspect
import logging
import re
import shutil
import sys
import threading
import tracemalloc
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda import core
from numpy.typing import NDArray

import e3d_deploy.runtime as e3d
from e3d_deploy import contract, doctor, inventory
from e3d_deploy.card import Card, Window
from e3d_deploy.config import EngineConfig
from e3d_deploy.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    E3DError,
    EngineError,
    ResourceLimit,
    ShapeError,
    StreamError,
)
from e3d_deploy.export.engines.plan import build_plan
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends import cuda
from e3d_deploy.runtime.backends.cuda import KERNEL, Cuda
from e3d_deploy.runtime.backends.device_states import Layout
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, installed
from e3d_deploy.runtime.backends.tensorrt import TensorRTBackend
from e3d_deploy.runtime.backends.tensorrt_engine import INVALID, check_validity
from e3d_deploy.runtime.verify import agrees, verify
from e3d_deploy.tensorrt_library import make_logger
from tests import fake_tensorrt_runtime
from tests.fake_cuda import Machine, OnGpu, fake_core
from tests.fake_tensorrt_runtime import FakeTensorRT, add_engines, floats, pictures, same

TARGET = "tensorrt-rtx"


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return add_engines(bundle_path)


@pytest.fixture
def many(any_batch: Path, tmp_path: Path) -> Bundle:
    """Return a bundle with a dynamic batch and with engines."""
    return add_engines(shutil.copytree(any_batch, tmp_path / "any.e3d"))


@pytest.fixture
def gpu(bundle: Bundle, trt: FakeTensorRT) -> TensorRTBackend:
    return TensorRTBackend(bundle, target=TARGET)


@pytest.fixture
def cpu(bundle: Bundle) -> Backend:
    return open_backend(bundle, "onnxruntime", threads=1)


# ---------------------------------------------------------------- the fakes match the real libraries


@pytest.mark.parametrize("fake", fake_tensorrt_runtime.CLASSES, ids=lambda fake: fake.__name__)
def test_the_fake_has_the_signatures_of_the_bindings(fake: type, rtx: Any) -> None:
    real = getattr(rtx, fake.__name__)
    for name, member in vars(fake).items():
        if name.startswith("_") or name in fake_tensorrt_runtime.OURS:
            continue
        assert hasattr(real, name), f"{fake.__name__}.{name}"
        if callable(member):
            ours = list(inspect.signature(member).parameters)[1:]
            documented = re.findall(rf"\b{name}\(self: [\w.]+(?:, (.*))?\) ->", getattr(real, name).__doc__)
            assert any(re.findall(r"(?:^|, )(\w+): ", one)[: len(ours)] == ours for one in documented), documented


def test_the_fake_has_the_enums_of_the_bindings(rtx: Any) -> None:
    for enum in (name for name, value in vars(FakeTensorRT).items() if type(value).__name__ == "SimpleNamespace"):
        for member in vars(getattr(FakeTensorRT, enum)):
            assert hasattr(getattr(rtx, enum), member), f"{enum}.{member}"
    assert {name for name, _, _ in INVALID} == set(rtx.EngineInvalidityDiagnostics.__members__)
    assert {"num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"} <= set(dir(rtx.ICudaEngine))


def test_the_fake_has_the_signatures_of_cuda_core() -> None:
    """Constructors of `cuda.core` cannot be inspected, so their parameters are looked up in the docstrings."""
    fake = fake_core(Machine())
    classes = [(getattr(core, name), one) for name, one in vars(fake).items() if isinstance(one, type)]
    classes += [(getattr(core.graph, name), one) for name, one in vars(fake.graph).items()]
    classes += [(getattr(core.utils, name), one) for name, one in vars(fake.utils).items()]
    for real, one in classes:
        for name, member in vars(one).items():
            if (name.startswith("_") and name != "__dlpack__") or name == "allocated":
                continue
            assert hasattr(real, name), f"{one.__name__}.{name}"
            if isinstance(member, (staticmethod, classmethod)) or callable(member):
                ours, theirs = (list(inspect.signature(getattr(k, name)).parameters.values()) for k in (one, real))
                named = [parameter.name for parameter in theirs]
                assert [parameter.name for parameter in ours] == named[: len(ours)], f"{one.__name__}.{name}"
                kinds = {parameter.name: parameter.kind for parameter in theirs}
                assert all(parameter.kind == kinds[parameter.name] for parameter in ours), f"{one.__name__}.{name}"
    for name in ("StreamOptions", "Program", "ProgramOptions", "LaunchConfig"):
        documented = f"{getattr(core, name).__doc__} {getattr(core, name).__init__.__doc__}"
        if name == "ProgramOptions":
            documented += str(inspect.signature(core.ProgramOptions))
        assert all(word in documented for word in list(inspect.signature(getattr(fake, name)).parameters)), name
    assert list(inspect.signature(core.launch).parameters) == list(inspect.signature(fake.launch).parameters)
    assert {"handle", "size"} <= set(dir(core.Buffer))
    assert {"ptr", "shape", "strides", "dtype", "device_id"} <= set(dir(core.utils.StridedMemoryView))
    assert "handle" in dir(core.Stream)
    assert {"arch", "compute_capability"} <= set(dir(core.Device))


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_the_kernel_compiles(arch: str) -> None:
    """NVRTC compiles without a GPU."""
    try:
        program = core.Program(KERNEL, "c++", core.ProgramOptions(arch=arch))
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    assert len(program.compile("cubin").code) > 1000


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("seen", [floats(9), pictures(9)], ids=["floats", "pictures"])
def test_steps_equal_those_of_onnxruntime_bitwise(gpu: Backend, cpu: Backend, seen: NDArray[Any]) -> None:
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    same(gpu, ours, cpu, theirs)
    for frame in seen:
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_array_equal(prediction, expected)
    same(gpu, ours, cpu, theirs)


def test_a_bundle_is_loaded_and_verified_on_it(bundle: Bundle, trt: FakeTensorRT) -> None:
    with e3d.load(bundle.path, TARGET) as predictor:
        assert (predictor.backend.name, predictor.backend.sizes, predictor.backend.pads) == (TARGET, (1,), True)
        assert agrees(bundle, predictor.backend)
        assert verify(bundle, predictor.backend).passed
        stream = predictor.stream()
        stream.push(pictures(1)[0, 0])
        assert stream.predict(3).shape == (3, 16, 24, 1)


def test_clip_and_rollout_equal_those_of_onnxruntime(gpu: Backend, cpu: Backend) -> None:
    context = floats(4).swapaxes(0, 1)
    (forecast, state), (expected, its) = gpu.clip(context), cpu.clip(context)
    np.testing.assert_array_equal(forecast, expected)
    same(gpu, state, cpu, its)
    prediction = floats(1)[0]
    for _ in range(2):  # The input state does not change.
        (forecast, after), (expected, its_after) = gpu.rollout(prediction, state), cpu.rollout(prediction, its)
        np.testing.assert_array_equal(forecast, expected)
        same(gpu, after, cpu, its_after)
    same(gpu, state, cpu, its)
    with pytest.raises(ShapeError, match=r"context: got \[1, 3, 1, 16, 24\], expected \[1, 4, 1, 16, 24\]"):
        gpu.clip(context[:, :3])


def test_a_state_survives_conversion_to_arrays_and_back(gpu: Backend, cpu: Backend) -> None:
    frame, its = floats(1)[0], cpu.initial_state()
    passed = [its := cpu.step(frame, its)[1] for _ in range(3)]
    states = [gpu.from_arrays(cpu.to_arrays(one)) for one in passed]
    for state, one in zip(states, passed, strict=True):
        same(gpu, state, cpu, one)
        np.testing.assert_array_equal(gpu.step(frame, state)[0], cpu.step(frame, one)[0])


# ---------------------------------------------------------------- calls of the libraries


def test_a_step_is_warmed_up_then_captured_then_launched(gpu: TensorRTBackend, machine: Machine) -> None:
    state = gpu.initial_state()
    machine.calls.clear()
    frame, calls = floats(1)[0], []
    for _ in range(4):
        _, state = gpu.step(frame, state)
        calls.append(machine.calls.copy())
        machine.calls.clear()
    first = ["copy", "copy", "shapes", "enqueue", "synchronise", "begin", "enqueue", "end", "instantiate"]
    # The first copies are of the frame and of the state, the last is of the prediction.
    assert calls[0] == [*first, "copy", "synchronise"]
    assert calls[1] == ["copy", *first[2:], "copy", "synchronise"]
    assert calls[2] == calls[3] == ["copy", "launch", "copy", "synchronise"]
    assert sorted(gpu.graphs) == [(1, 0), (1, 1)]


def test_each_of_the_two_graphs_reads_what_the_other_writes(gpu: TensorRTBackend) -> None:
    state = gpu.initial_state()
    for frame in floats(2):
        _, state = gpu.step(frame, state)
    even, odd = (gpu.contexts["step", 1, side].addresses for side in (0, 1))
    names = gpu.to_arrays(state)
    assert {even[name] for name in names} == {odd[f"next_{name}"] for name in names}
    assert {odd[name] for name in names} == {even[f"next_{name}"] for name in names}
    assert not {even[name] for name in names} & {even[f"next_{name}"] for name in names}
    assert (even["frame"], even["prediction"]) == (odd["frame"], odd["prediction"])


def test_a_steady_stream_copies_only_frames_and_allocates_nothing(gpu: TensorRTBackend, machine: Machine) -> None:
    state = gpu.initial_state()
    for frame in floats(3):
        _, state = gpu.step(frame, state)
    before = machine.counts.copy()
    for frame in floats(20):
        _, state = gpu.step(frame, state)
    done = machine.counts - before
    assert (done["launch"], done["copy"], done["allocate"], done["enqueue"]) == (20, 40, 0, 0)


def test_a_steady_stream_leaves_no_python_object_behind(gpu: TensorRTBackend) -> None:
    state, frame = gpu.initial_state(), floats(1)[0]
    for _ in range(5):
        _, state = gpu.step(frame, state)
    gpu.cuda.stream.sync()
    tracemalloc.start()
    try:
        begun = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            _, state = gpu.step(frame, state)
        grown = tracemalloc.get_traced_memory()[0] - begun
    finally:
        tracemalloc.stop()
    assert grown < 40_000  # The fake's list of calls takes 7 kB. One result of a step would take 1,536 bytes.


def test_without_graphs_addresses_are_set_at_each_step(
    gpu: TensorRTBackend, cpu: Backend, trt: FakeTensorRT, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    trt.captures = False
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    for number, frame in enumerate(floats(6)):
        before = machine.counts.copy()
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_array_equal(prediction, expected)
        assert (machine.counts - before)["address"] == 2 + 2 * len(gpu.to_arrays(ours))
        assert (machine.counts - before)["enqueue"] == (2 if number == 0 else 1)
    same(gpu, ours, cpu, theirs)
    said = [record for record in caplog.records if "cannot be captured" in record.message]
    assert len(said) == 1
    assert "(no kernel image is available)" in said[0].message


@pytest.mark.parametrize("refused", ["by CUDA", "by TensorRT-RTX before"])
def test_a_failed_capture_is_logged_once_and_steps_continue(
    refused: str,
    gpu: TensorRTBackend,
    cpu: Backend,
    trt: FakeTensorRT,
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.captures, trt.capturable = refused != "by CUDA", refused == "by CUDA"
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    for frame in floats(4):
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_array_equal(prediction, expected)
    assert caplog.text.count("cannot be captured") == 1
    assert machine.counts["begin"] == (1 if refused == "by CUDA" else 0)
    assert (machine.graphs, machine.capturing) == (0, None)


# ---------------------------------------------------------------- states are immutable values


def test_a_referenced_state_does_not_change_during_a_forecast(
    gpu: TensorRTBackend, cpu: Backend, machine: Machine
) -> None:
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    allocated = []
    for frame in floats(5):
        prediction, ours = gpu.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        ahead, state = prediction, ours
        its_ahead, its = expected, theirs
        for _ in range(5):  # Stream.forecast also keeps the state that it starts from.
            ahead, state = gpu.step(ahead, state)
            its_ahead, its = cpu.step(its_ahead, its)
            np.testing.assert_array_equal(ahead, its_ahead)
        same(gpu, ours, cpu, theirs)
        allocated.append(machine.counts["allocate"])
    assert allocated[1] == allocated[-1], "the memory of forecasts is reused"


def test_every_state_of_a_video_can_be_kept(gpu: TensorRTBackend, cpu: Backend) -> None:
    states, its = [gpu.initial_state()], [cpu.initial_state()]
    for frame in floats(5):
        states.append(gpu.step(frame, states[-1])[1])
        its.append(cpu.step(frame, its[-1])[1])
    for state, one in zip(states, its, strict=True):
        same(gpu, state, cpu, one)
    frame = floats(1)[0]
    for number in (3, 0, 5, 3):
        np.testing.assert_array_equal(gpu.step(frame, states[number])[0], cpu.step(frame, its[number])[0])


def test_alternating_streams_do_not_affect_each_other(gpu: TensorRTBackend, cpu: Backend, machine: Machine) -> None:
    ours, theirs = ([backend.initial_state() for _ in range(3)] for backend in (gpu, cpu))
    for round_, frames in enumerate(floats(12).reshape(4, 3, 1, 1, 16, 24)):
        for stream, frame in enumerate(frames):
            prediction, ours[stream] = gpu.step(frame, ours[stream])
            expected, theirs[stream] = cpu.step(frame, theirs[stream])
            np.testing.assert_array_equal(prediction, expected)
        if round_ == 1:
            allocated = machine.counts["allocate"]
    assert machine.counts["allocate"] == allocated
    for one, other in zip(ours, theirs, strict=True):
        same(gpu, one, cpu, other)


def test_threads_wait_for_each_other(gpu: TensorRTBackend, cpu: Backend) -> None:
    found: dict[int, Any] = {}

    def watch(number: int) -> None:
        state = gpu.initial_state()
        for frame in floats(8)[number:]:
            prediction, state = gpu.step(frame, state)
        found[number] = prediction, state

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (prediction, ours) in found.items():
        state = cpu.initial_state()
        for frame in floats(8)[number:]:
            expected, state = cpu.step(frame, state)
        np.testing.assert_array_equal(prediction, expected)
        same(gpu, ours, cpu, state)


# ---------------------------------------------------------------- batches


def test_sizes_are_those_that_the_profiles_allow(many: Bundle, trt: FakeTensorRT) -> None:
    for profiles, sizes in [
        ([(1, 1, 1)], (1,)),
        ([(1, 4, 8)], (1, 2, 4, 8)),
        ([(1, 1, 1), (2, 6, 8)], (1, 2, 4, 6, 8)),
        ([(3, 3, 3)], (3,)),
    ]:
        trt.profiles = profiles
        backend = TensorRTBackend(many, target=TARGET)
        assert backend.sizes == sizes
        backend.close()
    with pytest.raises(StreamError, match="was closed"):
        backend.initial_state(3)


def test_a_profile_with_the_size_as_optimum_is_preferred(many: Bundle, trt: FakeTensorRT, machine: Machine) -> None:
    trt.profiles = [(1, 8, 32), (1, 2, 4), (4, 4, 4)]
    backend = TensorRTBackend(many, target=TARGET)
    for batch, profile in ((1, 1), (2, 1), (4, 2), (8, 0), (16, 0)):
        backend.step(floats(1, batch)[0], backend.initial_state(batch))
        assert [call for call in machine.calls if call.startswith("profile")][-1] == f"profile {profile}"
    with pytest.raises(ConfigError, match=r"got 3 streams, expected one of 1, 2, 4, 8, 16, 32 at once"):
        backend.initial_state(3)


def test_a_graph_that_lacks_a_size_of_the_step_is_named(many: Bundle, trt: FakeTensorRT) -> None:
    trt.profiles = [(1, 1, 4)]
    backend = TensorRTBackend(many, target=TARGET)
    trt.profiles = [(1, 1, 1)]
    with pytest.raises(BundleError, match=r"clip\.tensorrt-rtx\.plan: has no profile for 2 streams, unlike the step"):
        backend.clip(floats(4, 2).swapaxes(0, 1))
    assert backend.clip(floats(4).swapaxes(0, 1))[0].shape == (1, 3, 1, 16, 24)


def test_gathered_streams_continue_unchanged(many: Bundle, trt: FakeTensorRT, machine: Machine) -> None:
    trt.profiles = [(1, 2, 4)]
    gpu, cpu = TensorRTBackend(many, target=TARGET), open_backend(many, "onnxruntime", threads=1)
    singles, batches = [], []
    for backend in (gpu, cpu):
        single, four = backend.initial_state(1), backend.initial_state(4)
        for frame in floats(3, 4):
            single = backend.step(frame[:1], single)[1]
            four = backend.step(frame, four)[1]
        singles.append(single)
        batches.append(four)
    for rows in ([(1, 2), (1, 3), (1, 0), (0, 0)], [(0, 0), (1, 1)], [(1, 3)], [(1, number) for number in range(4)]):
        (ours, theirs) = (
            backend.gather([((single, four)[which], number) for which, number in rows])
            for backend, single, four in zip((gpu, cpu), singles, batches, strict=True)
        )
        same(gpu, ours, cpu, theirs)
        frame = floats(1, len(rows))[0]
        (prediction, ours), (expected, theirs) = gpu.step(frame, ours), cpu.step(frame, theirs)
        np.testing.assert_array_equal(prediction, expected)
        same(gpu, ours, cpu, theirs)
    before = machine.counts.copy()
    gpu.gather([(batches[0], number) for number in range(4)])
    assert (machine.counts - before)["copy"] == len(gpu.to_arrays(batches[0])), "adjacent rows are copied together"
    assert len(gpu.graphs) == len({(batch, side) for _, batch, side in gpu.contexts})


# ---------------------------------------------------------------- arrays on the GPU


@pytest.mark.parametrize("seen", [floats(3), pictures(3)], ids=["floats", "pictures"])
def test_a_frame_on_the_gpu_is_read_there(
    gpu: TensorRTBackend, cpu: Backend, machine: Machine, seen: NDArray[Any]
) -> None:
    ours, theirs = gpu.initial_state(), cpu.initial_state()
    for frame in seen:
        prediction, ours = gpu.step(OnGpu(machine, frame), ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_array_equal(prediction, expected)


def test_a_prediction_can_stay_on_the_gpu(gpu: TensorRTBackend, cpu: Backend, machine: Machine) -> None:
    ahead, ours = gpu.step_on_device(floats(1)[0], gpu.initial_state())
    expected, theirs = cpu.step(floats(1)[0], cpu.initial_state())
    for number in range(4):
        shown = ahead.__cuda_array_interface__
        assert (shown["shape"], shown["typestr"], ahead.__dlpack_device__()) == ((1, 1, 16, 24), "<f4", (2, 0))
        np.testing.assert_array_equal(bytes_at(shown["data"][0]), expected.ravel())
        if number == 2:
            allocated = machine.counts["allocate"]
        ahead, ours = gpu.step_on_device(ahead, ours)
        expected, theirs = cpu.step(expected, theirs)
    assert machine.counts["allocate"] == allocated


def bytes_at(address: int) -> NDArray[np.float32]:
    from tests.fake_cuda import at

    return at(address, 4 * 16 * 24).view(np.float32)


def test_memory_of_a_prediction_is_kept_while_dlpack_uses_it(gpu: TensorRTBackend) -> None:
    prediction, state = gpu.step_on_device(floats(1)[0], gpu.initial_state())
    held, view = weakref.ref(prediction), prediction.__dlpack__(stream=1)
    before = bytes_at(view.ptr).copy()
    del prediction
    assert held() is not None
    gpu.step_on_device(floats(2)[1], state)
    np.testing.assert_array_equal(bytes_at(view.ptr), before)
    del view
    assert held() is None


@pytest.mark.parametrize(
    ("array", "device", "message"),
    [
        (floats(1, 2)[0], 0, r"got \[2, 1, 16, 24\] float32, expected \[1, 1, 16, 24\] float32"),
        (floats(1)[0].astype(np.float64), 0, "float64, expected"),
        (
            floats(1, 2)[0].transpose(0, 1, 3, 2)[:1],
            0,
            r"got a non-contiguous array \[1, 1, 24, 16\]; make a contiguous copy",
        ),
        (floats(1)[0], 1, "got an array on GPU 1, expected GPU 0"),
    ],
)
def test_an_array_on_the_gpu_that_is_not_a_frame_is_refused(
    gpu: TensorRTBackend, machine: Machine, array: NDArray[Any], device: int, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        gpu.step(OnGpu(machine, array, device), gpu.initial_state())


# ---------------------------------------------------------------- errors


def test_a_failed_step_does_not_change_its_state(
    gpu: TensorRTBackend, cpu: Backend, trt: FakeTensorRT, machine: Machine
) -> None:
    frames = floats(3)
    _, ours = gpu.step(frames[0], gpu.initial_state())
    _, theirs = cpu.step(frames[0], cpu.initial_state())
    trt.runs = False
    with pytest.raises(EngineError, match=r"step\.tensorrt-rtx\.plan: could not run \(no kernel image"):
        gpu.step(frames[1], ours)
    trt.runs, trt.refuses_address = True, "memory"
    with pytest.raises(EngineError, match="refuses the address of memory"):
        gpu.step(frames[1], ours)
    trt.refuses_address, machine.fails = "", "enqueue"
    with pytest.raises(EngineError, match=r"the GPU failed \(CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.step(frames[1], ours)
    machine.fails = ""
    same(gpu, ours, cpu, theirs)
    np.testing.assert_array_equal(gpu.step(frames[1], ours)[0], cpu.step(frames[1], theirs)[0])


def test_a_lack_of_memory_for_a_state_is_reported_and_nothing_is_lost(
    gpu: TensorRTBackend, cpu: Backend, machine: Machine
) -> None:
    frames = floats(4)
    held, its = [gpu.initial_state()], [cpu.initial_state()]
    for frame in frames[:2]:
        held.append(gpu.step(frame, held[-1])[1])
        its.append(cpu.step(frame, its[-1])[1])
    before = machine.limit = machine.allocated
    with pytest.raises(ResourceLimit, match=r"no memory left .*nothing was changed; close streams") as caught:
        gpu.step(frames[2], held[-1])  # The state before it is referenced, so it would have to be moved.
    assert caught.value.exit_code == 7
    del held[:1]
    np.testing.assert_array_equal(gpu.step(frames[2], held[-1])[0], cpu.step(frames[2], its[-1])[0])
    assert machine.allocated == before
    for state, one in zip(held, its[1:], strict=True):
        same(gpu, state, cpu, one)


def test_memory_of_freed_states_is_reused_up_to_a_limit(many: Bundle, trt: FakeTensorRT, machine: Machine) -> None:
    trt.profiles = [(1, 8, 32)]
    backend = TensorRTBackend(many, target=TARGET)
    states, few = [backend.initial_state(1) for _ in range(30)], machine.allocated
    del states
    backend.initial_state(1)
    assert machine.allocated < few - 20 * Layout(contract.states(many.config, 1), 1).nbytes
    machine.limit = machine.allocated + Layout(contract.states(many.config, 4), 4).nbytes * 2
    with pytest.raises(ResourceLimit):
        [backend.initial_state(1) for _ in range(1000)]
    backend.initial_state(4), "the spare memory had to be freed for it"


def test_a_gpu_without_memory_pools_works(bundle: Bundle, trt: FakeTensorRT, machine: Machine) -> None:
    machine.pools = False
    backend = TensorRTBackend(bundle, target=TARGET)
    backend.step(floats(1)[0], backend.initial_state())
    backend.close()
    assert (machine.allocated, machine.counts["pool closed"]) == (0, 0)


def test_device_ms_is_available_only_while_measuring(gpu: TensorRTBackend, machine: Machine) -> None:
    for _ in range(2):
        gpu.step(floats(1)[0], gpu.initial_state())
        assert gpu.device_ms is None, "reading the time does not switch timing on"
    assert machine.counts["record"] == 0
    gpu.measure(True)
    gpu.step(floats(1)[0], gpu.initial_state())
    assert gpu.device_ms > 0
    gpu.rollout(floats(1)[0], gpu.initial_state())
    assert gpu.device_ms > 0
    gpu.measure(False)
    gpu.step(floats(1)[0], gpu.initial_state())
    assert gpu.device_ms is None


def test_a_batch_size_too_large_for_the_memory_leaves_nothing_behind(
    many: Bundle, trt: FakeTensorRT, machine: Machine
) -> None:
    trt.profiles = [(1, 8, 32)]
    backend = TensorRTBackend(many, target=TARGET)
    state = backend.initial_state(1)
    before = machine.allocated
    # Enough memory for the two sets of states, but not for the frames.
    machine.limit = before + 2 * Layout(contract.states(many.config, 32), 32).nbytes + 5000
    for _ in range(3):
        with pytest.raises(ResourceLimit):
            backend.initial_state(32)
        assert machine.allocated == before
    backend.step(floats(1)[0], state)


@pytest.mark.parametrize("limit", [0, 5000])
def test_a_full_gpu_is_reported_on_opening(bundle: Bundle, trt: FakeTensorRT, machine: Machine, limit: int) -> None:
    machine.limit = limit
    with pytest.raises(ResourceLimit, match="no memory left"):
        TensorRTBackend(bundle, target=TARGET).initial_state()
    assert machine.allocated <= limit


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loads": False}, BundleError, r"cannot be loaded; build it again: .* \(bad magic\)"),
        ({"loads": False, "reason": "CUDA out of memory"}, ResourceLimit, "run fewer streams at once"),
        ({"half": "memory"}, BundleError, "its tensor memory differs from the manifest; build the engine again"),
        ({"validity": ("invalid", 0)}, BackendUnavailable, "gives no reason; check that there is an NVIDIA GPU"),
        *(({"validity": ("invalid", 2**bit)}, E3DError, "plan: ") for bit in range(7)),
        ({"validity": ("invalid", 2)}, BackendUnavailable, "another compute capability; build it for this one"),
        ({"validity": ("invalid", 1)}, BundleError, "another version of TensorRT-RTX; build it again"),
        ({"validity": ("invalid", 16)}, ResourceLimit, "more memory than the GPU has"),
    ],
)
def test_an_engine_that_cannot_run_names_the_reason(
    bundle: Bundle, trt: FakeTensorRT, machine: Machine, changes: dict[str, Any], error: type, message: str
) -> None:
    for name, value in changes.items():
        setattr(trt, name, value)
    with pytest.raises(error, match=message):
        TensorRTBackend(bundle, target=TARGET)
    assert machine.allocated == 0
    assert machine.counts["stream closed"] == 1


def test_a_gpu_that_rtx_does_not_support_is_refused_before_the_plan_is_read(
    bundle_path: Path, trt: FakeTensorRT, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.core.Device, "compute_capability", (9, 0))
    words = r"neither builds for nor runs on compute capability 9\.0, only 8\.6, 12\.0; .* onnxruntime-cuda"
    with pytest.raises(BackendUnavailable, match=words) as caught:
        TensorRTBackend(Bundle.open(bundle_path), target=TARGET)
    assert "e3d build" not in str(caught.value)
    assert (trt.runtimes, machine.allocated) == ([], 0)


def test_rtx_is_not_recommended_for_an_unsupported_gpu(monkeypatch: pytest.MonkeyPatch, rtx: Any) -> None:
    device = SimpleNamespace(name="NVIDIA H100", compute_capability=(9, 0))
    monkeypatch.setattr(inventory, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(inventory, "_device", lambda: device)
    assert TARGET not in installed()
    assert any("nor runs on compute capability 9.0" in words for words in doctor.examine()["warnings"])
    device.compute_capability = (8, 9)
    assert TARGET in installed()
    assert inventory.rtx_unsupported_reason() is None


def test_doctor_queries_the_support_of_rtx_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query initialises CUDA and imports TensorRT-RTX."""
    asked: list[None] = []
    asking = replace(BACKENDS[TARGET], unsupported_reason=lambda: asked.append(None))
    monkeypatch.setitem(BACKENDS, TARGET, asking)
    doctor.examine()
    assert len(asked) == 1


def test_an_engine_built_for_other_gpus_runs_with_a_warning(
    bundle: Bundle, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    trt.validity = ("suboptimal", 0)
    TensorRTBackend(bundle, target=TARGET)
    assert "would run faster if it were built for this GPU" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"missing": ["frame"]}, EngineError, "cannot infer the shape of frame"),
        ({"refuses_profiles": True}, EngineError, "refuses its profile for 2 streams"),
        ({"no_context": "internal"}, EngineError, r"cannot create an execution context \(internal\)"),
        ({"no_context": "Requested amount of GPU memory: out of memory"}, ResourceLimit, "close other programs"),
    ],
)
def test_a_context_that_cannot_be_created_names_the_reason(
    many: Bundle, trt: FakeTensorRT, changes: dict[str, Any], error: type, message: str
) -> None:
    trt.profiles = [(1, 2, 2)]
    backend = TensorRTBackend(many, target=TARGET)
    state = backend.initial_state(2)
    for name, value in changes.items():
        setattr(trt, name, value)
    with pytest.raises(error, match=message):
        backend.step(floats(1, 2)[0], state)


def test_the_step_engine_suffices_for_clip_and_rollout(bundle_path: Path, trt: FakeTensorRT, machine: Machine) -> None:
    bundle = add_engines(bundle_path, "step")
    gpu, cpu = TensorRTBackend(bundle, target=TARGET), open_backend(bundle, "onnxruntime", threads=1)
    (forecast, state), (expected, its) = (one.clip(floats(4).swapaxes(0, 1)) for one in (gpu, cpu))
    np.testing.assert_allclose(forecast, expected, atol=1e-5)  # The clip graph sums in another order.
    (forecast, _), (expected, _) = gpu.rollout(forecast[:, 0], state), cpu.rollout(expected[:, 0], its)
    np.testing.assert_allclose(forecast, expected, atol=1e-5)


def test_no_plan_is_run_that_the_manifest_does_not_name(bundle_path: Path, trt: FakeTensorRT, machine: Machine) -> None:
    with pytest.raises(BundleError, match=r"has no engine step.tensorrt-rtx, its manifest lists no engines; build"):
        TensorRTBackend(Bundle.open(bundle_path), target=TARGET)
    bundle = add_engines(bundle_path, "step")
    plan = bundle_path / "engines" / f"step.{TARGET}.plan"
    plan.write_bytes(plan.read_bytes() + b" ")
    runtimes = len(trt.runtimes)
    with pytest.raises(BundleError, match="altered, its SHA-256"):
        TensorRTBackend(bundle, target=TARGET)
    plan.write_bytes(plan.read_bytes()[:-1])
    add_engines(bundle_path, "step", version="1.6.0")
    with pytest.raises(BundleError, match=r"was built by tensorrt-rtx 1.6.0, this is 1.7.1"):
        TensorRTBackend(Bundle.open(bundle_path), target=TARGET)
    assert len(trt.runtimes) == runtimes, "the library received neither plan"
    assert not any(runtime.engine_host_code_allowed for runtime in trt.runtimes)


@pytest.mark.parametrize(
    ("words", "driver", "error", "message"),
    [
        ("CUDA_ERROR_DEVICE_UNAVAILABLE: busy", (13, 0), BackendUnavailable, "another program uses it exclusively"),
        ("CUDA_ERROR_OUT_OF_MEMORY: no memory", (13, 0), ResourceLimit, "it has no memory left; close other programs"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: no", (13, 0), BackendUnavailable, "restart the machine"),
        ("CUDA_ERROR_NO_DEVICE: none", (13, 0), BackendUnavailable, "the backend needs an NVIDIA GPU"),
        (
            "CUDA_ERROR_NOT_FOUND: none",
            (12, 4),
            BackendUnavailable,
            r"supports CUDA 12\.4, but cuda-bindings .*; update the",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_names_the_reason(
    machine: Machine, words: str, driver: tuple[int, int], error: type[E3DError], message: str
) -> None:
    machine.refusal, machine.cuda = words, driver
    with pytest.raises(error, match=f"^GPU 0: cannot be used \\({words}\\); .*{message}") as caught:
        Cuda()
    assert caught.value.exit_code == {BackendUnavailable: 4, ResourceLimit: 7}[error]


def test_a_gpu_that_cannot_be_used_names_the_reason_with_an_old_cuda_core(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old cuda-core has no query for the CUDA version of the driver."""
    monkeypatch.setattr(cuda.core, "system", SimpleNamespace())
    machine.refusal = "CUDA_ERROR_NO_DEVICE: none"
    with pytest.raises(BackendUnavailable, match=r"^GPU 0: cannot be used .*the backend needs an NVIDIA GPU"):
        Cuda()


def test_a_driver_too_old_for_nvrtc_is_reported(machine: Machine) -> None:
    machine.compiler, machine.cuda = False, (12, 4)
    with pytest.raises(BackendUnavailable, match=r"NVRTC.*; its driver supports CUDA 12\.4"):
        Cuda().compile_kernel()


def test_an_old_cuda_core_is_reported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In cuda-core 0.7 this option is named `enable_timing`."""
    monkeypatch.setattr(cuda.core, "EventOptions", lambda *, enable_timing=False: None)
    monkeypatch.setattr(cuda.core, "__version__", "0.7.0")
    with pytest.raises(BackendUnavailable, match=r"cuda-core 0\.7\.0 is too old .*--upgrade 'cuda-core>=1\.2'"):
        Cuda()


def test_a_cuda_core_with_only_experimental_modules_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core._utils", None)
    spec = importlib.util.spec_from_file_location("another_cuda", cuda.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(BackendUnavailable, match=r"cuda-core .* is too old .*--upgrade 'cuda-core>=1\.2'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_closing_frees_everything(gpu: TensorRTBackend, machine: Machine) -> None:
    prediction, state = gpu.step_on_device(floats(1)[0], gpu.initial_state())
    gpu.clip(floats(4).swapaxes(0, 1))
    assert machine.graphs == 1
    for _ in range(2):
        gpu.close()
    assert (machine.allocated, machine.graphs, machine.counts["stream closed"]) == (0, 0, 1)
    del prediction, state


def test_missing_libraries_are_named(bundle: Bundle, trt: FakeTensorRT, machine: Machine) -> None:
    machine.compiler = False
    with pytest.raises(BackendUnavailable, match=r"NVRTC.*does not work.*pip install 'e3d_deploy\[gpu\]'"):
        open_backend(bundle, TARGET)
    machine.driver = False
    with pytest.raises(BackendUnavailable, match='GPU 0: cannot be used \\("cuda" is an NVIDIA driver') as caught:
        open_backend(bundle, TARGET)
    assert caught.value.exit_code == 4
    assert machine.allocated == 0


def test_tensorrt_receives_the_allocation_strategy_directly(
    bundle: Bundle, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT, unlike TensorRT-RTX, does not capture CUDA graphs itself."""
    monkeypatch.delattr(FakeTensorRT, "CudaGraphStrategy")
    backend = TensorRTBackend(bundle, target=TARGET)
    backend.step(floats(1)[0], backend.initial_state())
    assert trt.contexts == 1


# ---------------------------------------------------------------- the real libraries, without a GPU


@pytest.fixture
def no_driver() -> None:
    if inventory.machine()["nvidia_driver"]:
        pytest.skip("this machine has an NVIDIA driver")


@pytest.mark.usefixtures("no_driver")
def test_the_real_library_reports_a_missing_driver(bundle_path: Path, rtx: Any) -> None:
    bundle = add_engines(bundle_path)
    with pytest.raises(BackendUnavailable, match=r"GPU 0: cannot be used .*the backend needs an NVIDIA GPU") as caught:
        open_backend(bundle, TARGET)
    assert caught.value.exit_code == 4
    assert not [name for name in installed() if BACKENDS[name].device == "gpu"]


@pytest.mark.usefixtures("no_driver")
def test_the_real_library_detects_a_malformed_plan(rtx: Any) -> None:
    runtime = rtx.Runtime(make_logger(rtx))
    assert not runtime.engine_host_code_allowed
    with pytest.raises(BundleError, match=r"x.plan: is not a TensorRT-RTX engine"):
        check_validity(rtx, runtime, b"no plan at all" * 100, "x.plan")


@pytest.mark.usefixtures("no_driver")
def test_the_real_library_refuses_a_valid_plan_without_a_gpu(rtx: Any, exported: Path) -> None:
    runtime, plan = rtx.Runtime(make_logger(rtx)), build_plan(rtx, exported / "tiny.e3d" / "step.onnx", EngineConfig())
    with pytest.raises(BackendUnavailable, match=r"x\.plan: TensorRT-RTX cannot run it here"):
        check_validity(rtx, runtime, plan, "x.plan")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_on_a_real_gpu_a_forecast_equals_that_of_onnxruntime(name: str, bundle_path: Path) -> None:
    from e3d_deploy.export.engines.build import build

    bundle = Bundle.open(bundle_path)
    try:
        Cuda().close()
        if name != "onnxruntime-cuda":
            build(bundle, name)
        backend = open_backend(Bundle.open(bundle_path), name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    cpu = open_backend(bundle, "onnxruntime")
    ours, theirs = backend.initial_state(), cpu.initial_state()
    for frame in pictures(8):
        prediction, ours = backend.step(frame, ours)
        expected, theirs = cpu.step(frame, theirs)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-3)
    assert agrees(bundle, backend)
    backend.close()


@pytest.mark.gpu
def test_on_a_real_gpu_memory_and_kernel_behave_like_the_fake() -> None:
    try:
        cuda = Cuda()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with cuda.opening():
        cuda.compile_kernel()
        shown = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
        staging, host = cuda.allocate_pinned(shown.nbytes)
        back, frames = cuda.allocate_pinned(4 * shown.size)
        picture, frame = cuda.allocate(shown.nbytes), cuda.allocate(4 * shown.size)
        host[:] = shown.ravel()
        cuda.copy(picture, staging)
        cuda.to_frames(picture, frame, 3, 16 * 24)
        cuda.copy(back, frame)
        cuda.synchronise()
    expected = np.moveaxis(shown, -1, 1) / np.float32(255)
    np.testing.assert_array_equal(frames.view(np.float32), expected.ravel())
    cuda.close()


def test_output_goes_only_to_logging(gpu: TensorRTBackend, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("e3d_deploy").debug("nothing")
    gpu.step(floats(1)[0], gpu.initial_state())
    assert capfd.readouterr().out == ""


# ---------------------------------------------------------------- streams with several states


class Lent:
    """Picture of the application on the GPU, [H, W, C]."""

    dtype = "uint8"

    def __init__(self, machine: Machine, array: NDArray[np.uint8]) -> None:
        self.machine, self.array, self.shape = machine, array.copy(), array.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise AssertionError("the picture is read only after a batch axis was added")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __getitem__(self, _: None) -> OnGpu:
        return OnGpu(self.machine, self.array[None])


@pytest.mark.parametrize("text", ["none", "refresh:2", "refresh:3", "replay"])
def test_pictures_on_the_gpu_are_read_once_and_may_be_overwritten(
    many: Bundle, trt: FakeTensorRT, machine: Machine, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(window=Window(context_length=3, horizon=3))
    with closing(TensorRTBackend(many, target=TARGET)) as gpu, closing(open_backend(many, "onnxruntime")) as host:
        taken: list[object] = []
        borrow = gpu.cuda.borrow

        def counted(array: Any) -> Any:
            taken.extend([array] if isinstance(array, OnGpu) else [])
            return borrow(array)

        monkeypatch.setattr(gpu.cuda, "borrow", counted)
        ours, theirs = (
            Predictor(many.config, backend, identity="same", card=card).stream(renewal=text) for backend in (gpu, host)
        )
        shown = pictures(11)[:, 0]
        for number, picture in enumerate(shown):
            lent = Lent(machine, picture)
            ours.push(lent)
            assert len(taken) == number + 1
            lent.array[:] = 0
            theirs.push(picture)
            if number % 3 == 1:
                np.testing.assert_allclose(ours.forecast(2), theirs.forecast(2), rtol=0, atol=1e-6)
        taken_here, taken_there = ours.snapshot(), theirs.snapshot()
        if text == "replay":
            np.testing.assert_array_equal(taken_here.frames, shown[-3:])  # type: ignore[arg-type]
            np.testing.assert_array_equal(taken_there.frames, shown[-3:])  # type: ignore[arg-type]
        else:
            assert (len(taken_here.states), taken_here.frames) == (len(taken_there.states), None)
