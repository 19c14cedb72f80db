"""Tests that invalid arguments of `load`, of the registry of backends and of paths are refused before any work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy import runtime
from e3d_deploy.errors import BundleError, ConfigError, ResourceLimit
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.registry import MAX_THREADS, check_threads, open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, register
from tests.fake_backend import FakeBackend
from tests.toy_backend import TOY

MISTAKES = {
    "zero": 0,
    "negative": -1,
    "bool": True,
    "fraction": 1.5,
    "NaN": np.nan,
    "infinity": np.inf,
    "text": "2",
    "huge": 10**400,
    "more than there are": MAX_THREADS + 1,
}


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundle is opened."""

    def opened(*_: object) -> None:
        raise AssertionError("work was done before arguments were checked")

    monkeypatch.setattr(Bundle, "open", opened)


@pytest.mark.parametrize("threads", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.usefixtures("unopened")
def test_threads_that_cannot_be_are_refused_before_work(threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads: got"):
        runtime.load("model.e3d", "onnxruntime", threads=threads)


def test_open_backend_refuses_such_threads_too(any_batch: Path) -> None:
    with pytest.raises(ConfigError, match="threads: got 0"):
        open_backend(Bundle.open(any_batch), "onnxruntime", threads=0)


def test_numbers_of_threads_that_can_be() -> None:
    assert [check_threads(threads) for threads in (None, 1, np.int64(2), MAX_THREADS)] == [None, 1, 2, MAX_THREADS]


@pytest.mark.parametrize("path", [None, b"model.e3d", 3, 1.5, ["model.e3d"], "model\0.e3d", "\ud800.e3d"])
@pytest.mark.usefixtures("unopened")
def test_what_is_no_path_is_refused_before_work(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"path: got .*, expected text or a path"):
        runtime.load(path, "onnxruntime")


@pytest.mark.parametrize("backend", [None, 3, b"onnxruntime", object(), FakeBackend, TOY, ["onnxruntime"]])
@pytest.mark.usefixtures("unopened")
def test_what_is_no_backend_is_refused_before_work(backend: Any) -> None:
    with pytest.raises(ConfigError, match=r"backend: got .*, expected a name such as onnxruntime, or an opened"):
        runtime.load("model.e3d", backend)


@pytest.mark.parametrize("name", ["", "AUTO", " onnxruntime", "onnxruntime\n"])
def test_a_name_of_no_backend_lists_those_that_there_are(any_batch: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"backend: got '.*', expected one of auto, "):
        runtime.load(any_batch, name)


def test_a_backend_of_ones_own_is_taken_as_it_is(any_batch: Path) -> None:
    backend = FakeBackend()
    with runtime.load(any_batch, backend) as predictor:
        assert isinstance(predictor, Predictor)
        assert predictor.backend is backend


def test_memory_that_runs_out_while_a_bundle_is_loaded_is_a_resource_limit(
    any_batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("e3d_deploy.runtime.backends.onnxruntime.onnxruntime.InferenceSession", full)
    with pytest.raises(ResourceLimit, match="out of memory"):
        runtime.load(any_batch, "onnxruntime")


@pytest.mark.parametrize("name", ["", " ", "auto", "Toy", "my backend", "toy ", "-toy", "toy-", "to--y", "tö", 3, None])
def test_a_backend_with_a_name_that_nobody_can_give_is_not_registered(name: Any) -> None:
    before = dict(BACKENDS)
    with pytest.raises(ConfigError, match=r"backend: .*; register the new backend under another name"):
        register(replace(TOY, name=name))
    assert before == BACKENDS


def test_what_is_no_entry_is_not_registered() -> None:
    with pytest.raises(ConfigError, match="backend: got 'toy', expected a BackendSpec"):
        register("toy")  # type: ignore[arg-type]


def test_a_name_that_is_too_long_is_no_bundle() -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        runtime.load("x" * 5000, "onnxruntime")
