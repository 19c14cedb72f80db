"""Backends that the contract tests run on: all specs, on fakes where the hardware is missing."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import BACKENDS
from tests.fake_tensorrt_runtime import add_engines
from tests.fake_torch_gpu import put_in_place

TOY = "toy"
FAKED = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch-cuda-graph", "torch-compiled", TOY)
"""Backends that run on any machine, because `arrange` replaces what they need."""
NAMES = (*BACKENDS, TOY)
LARGEST = 4
"""Maximum batch size tested. Larger batches run the same code and take longer."""


def arrange(name: str, path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Bundle:
    """Install the fake of a backend, if there is one, and return the bundle that the backend runs."""
    monkeypatch = request.getfixturevalue("monkeypatch")
    match name:
        case "tensorrt" | "tensorrt-rtx":
            request.getfixturevalue("trt").profiles = [(1, 2, LARGEST)]
            return add_engines(shutil.copytree(path, tmp_path / "any.e3d"), target=name)
        case "onnxruntime-cuda":
            request.getfixturevalue("on_cpu")
        case "torch-cuda-graph":
            put_in_place(request.getfixturevalue("machine"), monkeypatch)
        case "torch-compiled":  # Its step runs uncompiled, because compilation takes minutes.
            monkeypatch.setattr("e3d_deploy.runtime.backends.torch_compiled.compiled", lambda ring, **_: ring)
        case "toy":
            request.getfixturevalue("toy")
    return Bundle.open(path)


@dataclass(frozen=True)
class Case:
    """Opened backend, with its spec and its bundle."""

    spec: BackendSpec
    bundle: Bundle
    backend: Backend
