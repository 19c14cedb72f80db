"""Fakes behind the backends that need a GPU, and a backend that only tests register."""

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
    """The provider of the processor in the place of CUDA, which cannot be told that falling back to it is refused.
    It runs a graph at once, and not in the stream: so what is in the stream is done before."""
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
    """Entry of the toy backend, registered during the test."""
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
    """Predictor on each backend."""
    with Predictor.of_bundle(case.bundle, case.backend) as predictor:
        yield predictor
