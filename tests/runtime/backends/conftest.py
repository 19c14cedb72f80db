"""Fixtures: fakes for the backends that need a GPU, and a backend that only tests register."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import BACKENDS, find, has_libraries, register
from tests.fake_cuda import Machine
from tests.fake_tensorrt_runtime import FakeTensorRT
from tests.runtime.backends.cases import FAKED, NAMES, Case, arrange
from tests.toy_backend import TOY


@pytest.fixture
def trt(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(machine)
    monkeypatch.setattr("e3d_deploy.runtime.backends.tensorrt.library", lambda _: fake)
    monkeypatch.setattr("e3d_deploy.runtime.backends.tensorrt_engine.library", lambda _: fake)
    return fake


@pytest.fixture
def on_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make `onnxruntime-cuda` run on the CPU provider of ONNX Runtime instead of the CUDA provider.

    The CPU provider refuses the option `STRICT`, so it is switched off. It runs a graph immediately rather than in the
    CUDA stream, so pending work in the stream runs first.
    """
    from e3d_deploy.runtime.backends import onnxruntime_cuda
    from e3d_deploy.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "STRICT", ("session.disable_cpu_ep_fallback", "0"))
    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_options", lambda *_: {})
    play = OnnxRuntimeCudaBackend._play

    def in_order(self: Any, session: Any, binding: Any, *, number: int) -> None:
        machine.wait()
        play(self, session, binding, number=number)

    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_play", in_order)
    return machine


@pytest.fixture
def toy() -> Iterator[BackendSpec]:
    """Register the toy backend during a test and yield its spec."""
    register(TOY)
    yield TOY
    del BACKENDS[TOY.name]


@pytest.fixture(params=NAMES)
def arranged(request: pytest.FixtureRequest, any_batch: Path, tmp_path: Path) -> tuple[BackendSpec, Bundle]:
    bundle = arrange(request.param, any_batch, tmp_path, request)
    return find(request.param), bundle


@pytest.fixture
def case(arranged: tuple[BackendSpec, Bundle]) -> Iterator[Case]:
    spec, bundle = arranged
    try:
        backend = open_backend(bundle, spec.name, threads=1)
    except BackendUnavailable as error:
        if spec.name in FAKED or has_libraries(spec):
            raise
        pytest.skip(str(error))
    with backend:
        yield Case(spec, bundle, backend)


@pytest.fixture
def predictor(case: Case) -> Iterator[Predictor]:
    """Yield a predictor on each backend."""
    with Predictor.of_bundle(case.bundle, case.backend) as predictor:
        yield predictor
