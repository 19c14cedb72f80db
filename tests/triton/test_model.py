"""Model of Triton's Python backend with a fake of the server's module; test_server.py uses a real server."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError
from e3d_deploy.runtime import Bundle
from e3d_deploy.triton import model, reports
from e3d_deploy.triton.config import Serving
from e3d_deploy.triton.repository import write_repository
from e3d_deploy.triton.requests import Counts
from tests.triton.configs import config_of


class Tensor:
    """Tensor of a server whose C++ code reads arrays of NumPy correctly, or as zeros."""

    reads_zeros = False

    def __init__(self, name: str, array: Any) -> None:
        self.array = array

    def as_numpy(self) -> Any:
        return self.array

    def to_dlpack(self) -> Any:
        return np.zeros_like(self.array) if self.reads_zeros else self.array

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> "Tensor":
        return cls(name, capsule)


class Metric:
    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels, self.total = labels, 0.0

    def value(self) -> float:
        return self.total

    def increment(self, change: float) -> None:
        self.total += change


class MetricFamily:
    GAUGE, COUNTER = "gauge", "counter"
    made: "list[MetricFamily]"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.made.append(self)

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        self.metric = Metric(labels)
        return self.metric


class Logger:
    lines: list[tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        return lambda text: self.lines.append((name, text))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install a fake of the module that exists only in the server."""
    MetricFamily.made, Logger.lines = [], []
    fake = SimpleNamespace(Tensor=type("Tensor", (Tensor,), {}), MetricFamily=MetricFamily, Logger=Logger())
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    package = logging.getLogger("e3d_deploy")
    handlers, level = list(package.handlers), package.level
    yield fake
    package.handlers[:] = handlers
    package.setLevel(level)


@pytest.fixture
def args(bundle_path: Path, tmp_path: Path) -> dict[str, str]:
    """Write a model repository, and return what the server passes to `initialize`."""
    write_repository([Bundle.open(bundle_path)], tmp_path / "models", serving=Serving(backend="onnxruntime", threads=1))
    folder = tmp_path / "models" / "tiny"
    config = json_format.MessageToDict(config_of(folder), preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": "tiny",
        "model_instance_name": "tiny_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def changed(args: dict[str, str], parameter: str, value: str) -> dict[str, str]:
    config = json.loads(args["model_config"])
    config["parameters"][parameter]["string_value"] = value
    return {**args, "model_config": json.dumps(config)}


def test_a_numpy_whose_arrays_the_server_misreads_is_refused(triton: Any, args: dict[str, str]) -> None:
    triton.Tensor.reads_zeros = True
    with pytest.raises(BackendUnavailable, match=r"hold wrong values; run in its environment: pip install 'numpy<2'"):
        model.TritonPythonModel().initialize(args)


def test_a_configuration_of_another_version_is_refused(triton: Any, args: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tiny: got a model configuration of version 0, expected 1; write the repo"):
        model.TritonPythonModel().initialize(changed(args, "e3d_contract", "0"))


def test_another_bundle_than_the_configuration_names_is_refused(triton: Any, args: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"bundle\.e3d: got the bundle [0-9a-f]+, expected other"):
        model.TritonPythonModel().initialize(changed(args, "e3d_bundle", "other"))


def test_settings_come_from_the_configuration(args: dict[str, str]) -> None:
    settings = model.Settings(json.loads(changed(args, "e3d_threads", "")["model_config"]))
    assert (settings.backend, settings.threads) == ("onnxruntime", None)
    assert (settings.idle_s, settings.max_streams) == (60.0, 32)
    assert settings.renewal == json.loads(args["model_config"])["parameters"]["e3d_renewal"]["string_value"]


def test_metrics_show_the_counts_of_each_instance(triton: Any) -> None:
    metrics = reports.Metrics(triton, {"model": "tiny", "instance": "tiny_0_0"})
    for counts in (Counts(streams=3, frames=10, expired=0), Counts(streams=1, frames=15, expired=2)):
        metrics.report(counts)
    found = {family.name: (family.kind, family.metric.total) for family in MetricFamily.made}
    assert found == {"e3d_streams": ("gauge", 1), "e3d_frames": ("counter", 15), "e3d_expired": ("counter", 2)}
    assert MetricFamily.made[0].metric.labels == {"model": "tiny", "instance": "tiny_0_0"}


def test_metrics_are_not_sent_to_a_server_that_has_ended(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = reports.Metrics(triton, {"model": "tiny", "instance": "tiny_0_0"})
    monkeypatch.setattr(os, "getppid", lambda: 1)
    metrics.report(Counts(streams=3, frames=10, expired=0))
    assert [family.metric.total for family in MetricFamily.made] == [0, 0, 0]


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("", "1"), ("4,6", "6")])
def test_an_instance_sees_only_its_own_gpu(visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    model.use_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_messages_of_the_package_go_to_the_log_of_the_server(triton: Any) -> None:
    reports.send_logs(triton.Logger)
    log = logging.getLogger("e3d_deploy.runtime.predictor")
    log.info("loaded")
    log.warning("renewal %s", "refresh:2")
    log.error("failed")
    assert Logger.lines == [("log_info", "loaded"), ("log_warn", "renewal refresh:2"), ("log_error", "failed")]
