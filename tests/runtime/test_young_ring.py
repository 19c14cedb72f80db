"""Tests that empty slots of a ring are zero in every state, and that a finite bias hides them like minus infinity."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from e3d_deploy import contract, runtime
from e3d_deploy.bundle.folder import write_manifest
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.files import sha256
from e3d_deploy.inspect import inspect_bundle
from e3d_deploy.runtime import Bundle, Snapshot
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from tests.bundle.test_old_bundle import OLD
from tests.manifests import changed
from tests.tools import e3d

Arrays = dict[str, NDArray[Any]]
JUNK = (1e3, np.nan)


@pytest.fixture(params=["onnxruntime", "openvino", "torch"])
def host(request: pytest.FixtureRequest, exported: Path) -> Iterator[Backend]:
    try:
        backend = open_backend(Bundle.open(exported / "tiny.e3d"), request.param, threads=1)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


@pytest.fixture
def frames(exported: Path) -> NDArray[np.float32]:
    """Return the frames of the reference clip, [T, 1, C, H, W]."""
    pictures = np.load(exported / "clip.npy")
    return np.moveaxis(pictures, -1, 1)[:, None].astype(np.float32) / 255


def with_junk(arrays: Arrays, junk: float) -> Arrays:
    """Return a copy of a state whose empty slots are filled with `junk`."""
    result = {name: array.copy() for name, array in arrays.items()}
    for name, ring in result.items():
        if name.startswith("history."):
            ring[np.arange(ring.shape[1]) >= result["written"][:, None]] = junk
    return result


def assert_empty_slots_are_zeros(arrays: Arrays) -> None:
    for name, array in with_junk(arrays, 0).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_a_snapshot_changes_nothing(exported: Path, tmp_path: Path, junk: float) -> None:
    pictures = np.load(exported / "clip.npy")
    with runtime.load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor:
        stream = predictor.stream()
        stream.push(pictures[0])
        stream.snapshot().save(tmp_path / "clean.npz")
        clean = Snapshot.load(tmp_path / "clean.npz")
        replace(clean, states=(with_junk(clean.states[0], junk),)).save(tmp_path / "junk.npz")
        restored = predictor.stream(Snapshot.load(tmp_path / "junk.npz"))
        np.testing.assert_array_equal(restored.forecast(3), stream.forecast(3))


def test_empty_slots_are_zeros_in_memory_that_is_used_again(host: Backend, frames: NDArray[np.float32]) -> None:
    """States with full rings are freed first, so that the backend reuses their memory for new states."""
    states = [host.initial_state()]
    for frame in frames:
        states.append(host.step(frame, states[-1])[1])
    del states
    fresh = host.initial_state()
    assert_empty_slots_are_zeros(host.to_arrays(fresh))
    _, stepped = host.step(frames[0], fresh)
    assert_empty_slots_are_zeros(host.to_arrays(stepped))
    assert_empty_slots_are_zeros(host.to_arrays(host.gather([(stepped, 0)])))
    prediction, stepped = host.step(frames[1], fresh)
    assert_empty_slots_are_zeros(host.to_arrays(host.rollout(prediction, host.initial_state())[1]))


def test_empty_slots_are_zeros_where_rows_are_gathered(any_batch: Path, frames: NDArray[np.float32]) -> None:
    backend = open_backend(Bundle.open(any_batch), "onnxruntime", threads=1)
    old, young = backend.initial_state(), backend.initial_state()
    for frame in frames:
        _, old = backend.step(frame, old)
    del frame
    both = backend.gather([(old, 0), (young, 0)])
    del old
    swapped = backend.gather([(both, 1), (both, 0)])
    for _ in range(2):
        assert_empty_slots_are_zeros(backend.to_arrays(swapped))
        _, swapped = backend.step(np.concatenate(frames[:2]), swapped)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("source", ["exported", "any_batch"])
def test_the_finite_bias_computes_what_minus_infinity_does(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, source: str
) -> None:
    """Outputs are equal bit for bit, from the first frame until after the second wrap of the ring."""
    if name == "openvino":
        pytest.importorskip("openvino")
    path = request.getfixturevalue(source)
    path = path if source == "any_batch" else path / "tiny.e3d"
    old = masked_with_minus_infinity(path, tmp_path / "old.e3d")
    backends = [open_backend(Bundle.open(one), name, threads=1) for one in (path, old)]
    states = [backend.initial_state() for backend in backends]
    for frame in np.random.default_rng(3).random((2 * 4 + 2, 1, 1, 16, 24), np.float32):
        (one, states[0]), (other, states[1]) = (
            backend.step(frame, state) for backend, state in zip(backends, states, strict=True)
        )
        np.testing.assert_array_equal(one, other)
    arrays = backends[1].to_arrays(states[1])
    for key, array in backends[0].to_arrays(states[0]).items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)


def masked_with_minus_infinity(path: Path, to: Path) -> Path:
    """Copy a bundle, and put the mask that versions up to commit faccf7a wrote into its step graph."""
    shutil.copytree(path, to)
    bundle = Bundle.open(to)
    file = bundle.graph("step")
    model = onnx.load(file, load_external_data=False)
    (mask,) = (one for one in model.graph.initializer if one.raw_data == np.float32(contract.EMPTY_BIAS).tobytes())
    mask.raw_data = np.float32(-np.inf).tobytes()
    onnx.save(model, file)
    write_manifest(to, changed(bundle, files={**bundle.manifest.files, file.name: sha256(file)}).manifest)
    return to


def test_inspect_names_a_bundle_that_is_slow_while_its_ring_fills(exported: Path) -> None:
    """The older bundle was written by commit faccf7a."""
    assert inspect_bundle(OLD / "tiny.e3d").slow_young_ring is True
    assert "masked with minus infinity" in e3d("inspect", OLD / "tiny.e3d").stdout
    assert inspect_bundle(exported / "tiny.e3d").slow_young_ring is False
    assert "ring with empty slots" not in e3d("inspect", exported / "tiny.e3d").stdout


def test_inspect_says_how_streams_are_stepped(exported: Path, any_batch: Path) -> None:
    one, many = (inspect_bundle(path) for path in (exported / "tiny.e3d", any_batch))
    assert (one.batch, many.batch) == (1, None)
    assert many.to_json()["bundle"]["batch"] == "any"
    assert "export with `--batch any`" in e3d("inspect", exported / "tiny.e3d").stdout
    assert "many streams" not in e3d("inspect", any_batch).stdout
