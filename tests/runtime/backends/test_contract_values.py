"""Contract of all backends: pictures of every kind, results that do not fit into memory, and snapshots as values."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from e3d_deploy.errors import ResourceLimit, ShapeError
from e3d_deploy.runtime import Predictor, Snapshot
from tests.runtime.backends.cases import Case

SIZE = (16, 24, 1)
ROW = np.random.default_rng(5).integers(0, 256, (1, 24, 1), dtype=np.uint8)
"""The same row for all rows of a picture, so that a broadcast view is a picture too."""


def received(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy over read-only memory, like an array received in a message."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[:] = array
    return view


def mapped(array: NDArray[Any], path: Path) -> NDArray[Any]:
    np.save(path, array)
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found


class Labelled(np.ndarray[Any, Any]):
    """Subclass of NumPy's array, such as libraries that read pictures return."""


class Exporter:
    """Array of another library, which exports its memory by DLPack."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, Any]:
        return self.array.__dlpack_device__()


def same_pictures(plain: NDArray[Any], path: Path) -> dict[str, Any]:
    """Return the same picture in arrays of many kinds, by name."""
    stored = np.zeros(SIZE, [("before", np.uint8), ("picture", plain.dtype)])
    stored["picture"] = plain
    backwards = plain[::-1, ::-1].copy()
    wide = np.zeros((16, 48, 2), plain.dtype)
    wide[:, ::2, 1:] = plain
    read_only = plain.copy()
    read_only.flags.writeable = False
    return {
        "read-only": read_only,
        "of a message": received(plain),
        "memory-mapped": mapped(plain, path),
        "broadcast": np.broadcast_to(plain[:1].copy(), SIZE),
        "transposed": plain.transpose(1, 0, 2).copy().transpose(1, 0, 2),
        "Fortran's order": np.asfortranarray(plain),
        "negative strides": backwards[::-1, ::-1],
        "sliced": wide[:, ::2, 1:],
        "field of a record": stored["picture"],
        "unaligned": unaligned(plain),
        "subclass": plain.view(Labelled),
        "masked without a mask": np.ma.masked_array(plain),
        "masked with nothing hidden": np.ma.masked_array(plain, mask=np.zeros(SIZE, bool)),
        "tensor": torch.from_numpy(plain),
        "transposed tensor": torch.from_numpy(plain.transpose(1, 0, 2).copy()).permute(1, 0, 2),
        "read-only by DLPack": Exporter(read_only),
    }


def kinds(path: Path) -> dict[str, dict[str, Any]]:
    """Return the same picture as bytes and as floats, each in arrays of many kinds by name, the plain array first."""
    seen = np.ascontiguousarray(np.broadcast_to(ROW, SIZE))
    floats = (seen / np.float32(256)).astype(np.float32)  # Exact in every float type.
    types = {kind: floats.astype(kind) for kind in ("float16", "float64", "longdouble", ">f4", ">f8", ">f2", "<f4")}
    return {
        "bytes": {"plain": seen, **same_pictures(seen, path / "bytes.npy")},
        "floats": {
            "plain": floats,
            **types,
            **same_pictures(floats, path / "floats.npy"),
            "list": floats.tolist(),
            "read-only float64": received(floats.astype(np.float64)),
        },
    }


def test_pictures_in_every_kind_of_array_are_accepted(predictor: Predictor, tmp_path: Path) -> None:
    with predictor.streams(renewal="none", max_wait_ms=0) as streams:
        plain, slot = predictor.stream(renewal="none"), streams.open()
        for found in kinds(tmp_path).values():
            expected = None
            for name, picture in found.items():
                plain.reset()
                plain.push(picture)
                slot.reset()
                slot.push(picture)
                shared = slot.forecast(1)
                assert plain.prediction is not None
                if expected is None:
                    expected = plain.prediction.copy()
                np.testing.assert_array_equal(plain.prediction, expected, err_msg=name)
                np.testing.assert_array_equal(shared, expected, err_msg=f"{name}, shared")


def partly_masked(dtype: str) -> NDArray[Any]:
    picture = np.ma.masked_array(np.zeros(SIZE, dtype), mask=np.zeros(SIZE, bool))
    picture[2:4, 3] = np.ma.masked
    picture.data[2:4, 3] = 250
    return picture


REFUSED: dict[str, tuple[Any, str]] = {
    "masked floats": (partly_masked("float32"), r"its mask hides 2 of 384 values, .* picture\.filled\(value\)"),
    "masked bytes": (partly_masked("uint8"), "its mask hides 2 of 384 values"),
    "rows of a masked array": (list(partly_masked("float32")), "its mask hides 2 of 384 values"),
    "masked": (np.ma.masked, "its mask hides 1 of 1"),
    "NaN": (np.full(SIZE, np.nan, np.float32), "holds NaN or infinity"),
    "infinity": (np.full(SIZE, -np.inf), "holds NaN or infinity"),
    "out of range": (np.full(SIZE, 200, np.float16), r"float16 picture out of range, values from 200 to 200, .*255"),
    "just out of range": (np.full(SIZE, 1 + 2**-52), "float64 picture out of range, .*1.0000000000000002"),
    "negative": (np.full(SIZE, -0.5), r"values from -0\.5 to -0\.5, expected \[0, 1\]; scale it"),
    "bool": (np.zeros(SIZE, bool), "got bool, expected uint8"),
    "int64": (np.zeros(SIZE, np.int64), "got int64, expected uint8"),
    "complex": (np.zeros(SIZE, np.complex64), "got complex64"),
    "time": (np.zeros(SIZE, "datetime64[s]"), r"got datetime64\[s\]"),
    "objects": (np.zeros(SIZE, object), "got object"),
    "text": (np.zeros(SIZE, "U1"), "got <U1"),
    "records": (np.zeros(SIZE, [("value", np.float32)]), r"got \[\('value', '<f4'\)\]"),
    "scalar": (np.float32(0.5), r"got \[\] float32, expected \[H, W, C\]"),
    "matrix": (np.zeros((16, 24), np.uint8).view(np.matrix), r"got \[16, 24\] uint8"),
    "None": (None, r"got \[\] object"),
    "ragged": ([[1], [1, 2]], "is not an array that NumPy can read"),
    "tensor with a gradient": (torch.zeros(SIZE, requires_grad=True), r"is not an array .*detach\(\)"),
    "tensor without memory": (torch.zeros(SIZE, device="meta"), "is not an array"),
    "bfloat16": (torch.zeros(SIZE, dtype=torch.bfloat16), "is not an array"),
}


def test_invalid_pictures_are_refused_and_the_stream_is_unchanged(predictor: Predictor) -> None:
    with predictor.streams(renewal="none", max_wait_ms=0) as streams:
        for stream in (predictor.stream(renewal="none"), streams.open()):
            for name, (picture, message) in REFUSED.items():
                with pytest.raises(ShapeError, match=f"picture: .*{message}"):
                    stream.push(picture)
                assert stream.pushed == 0, name
            stream.push(np.zeros(SIZE, np.uint8))
            stream.forecast(1)
            assert stream.pushed == 1


def test_frames_in_every_kind_of_array_are_accepted_by_step_clip_and_rollout(case: Case) -> None:
    backend, bundle = case.backend, case.bundle
    seen = np.random.default_rng(0).random((1, bundle.context_length, 1, 16, 24), np.float32)
    kinds_of = {
        "read-only": received,
        "big-endian": lambda one: one.astype(">f4"),
        "reversed": lambda one: one[..., ::-1].copy()[..., ::-1],
        "unaligned": unaligned,
        "float64": lambda one: one.astype(np.float64),
    }
    expected, state = backend.step(seen[:, 0], backend.initial_state(1))
    rolled, clip = backend.rollout(expected, state)[0], backend.clip(seen)[0]
    for name, of_kind in kinds_of.items():
        found = backend.step(of_kind(seen[:, 0]), backend.initial_state(1))[0]
        np.testing.assert_array_equal(found, expected, err_msg=name)
        np.testing.assert_array_equal(backend.rollout(of_kind(expected), state)[0], rolled, err_msg=name)
        np.testing.assert_array_equal(backend.clip(of_kind(seen))[0], clip, err_msg=name)
    masked = np.ma.masked_array(seen, mask=seen > 0.5)
    for call in (lambda: backend.step(masked[:, 0], state), lambda: backend.clip(masked)):
        with pytest.raises(ShapeError, match="its mask hides"):
            call()


def test_a_forecast_too_large_for_memory_is_a_resource_limit(predictor: Predictor) -> None:
    with predictor.streams(renewal="none", max_wait_ms=0) as streams:
        for stream in (predictor.stream(renewal="none"), streams.open()):
            stream.push(np.zeros(SIZE, np.uint8))
            for horizon in (10**14, 2**63, 10**400):
                for call in (stream.predict, stream.forecast):
                    with pytest.raises(
                        ResourceLimit, match=r"horizon: .* takes .* bytes, .* ask for fewer frames"
                    ) as error:
                        call(horizon)
                    assert error.value.exit_code == 7
            stream.forecast(1)


def test_snapshots_are_immutable_values(predictor: Predictor, tmp_path: Path) -> None:
    with predictor.streams(renewal="none", max_wait_ms=0) as streams:
        for stream in (predictor.stream(renewal="none"), streams.open()):
            new = stream.snapshot()
            stream.push(np.full(SIZE, 9, np.uint8))
            one, same = stream.snapshot(), stream.snapshot()
            stream.push(np.full(SIZE, 200, np.uint8))
            other = stream.snapshot()
            assert one == same
            assert hash(one) == hash(same)
            assert one in [other, same]
            assert len({new, one, same, other}) == 3
            assert one not in [new, other]
            one.save(tmp_path / "one.npz")
            for again in (one, copy.copy(one), copy.deepcopy(one), pickled(one), Snapshot.load(tmp_path / "one.npz")):
                assert again == one
                assert_read_only(again)
            stream.restore(one)
            stream.push(np.full(SIZE, 200, np.uint8))  # The restored arrays are read-only.
            assert stream.snapshot() == other


def pickled(snapshot: Snapshot) -> Snapshot:
    found: Snapshot = pickle.loads(pickle.dumps(snapshot))
    return found


def assert_read_only(snapshot: Snapshot) -> None:
    assert snapshot.prediction is not None
    for array in (snapshot.prediction, *snapshot.states[0].values()):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    with pytest.raises(TypeError, match="cannot be changed"):
        snapshot.states[0]["memory"] = np.zeros(3)  # type: ignore[index]


def test_replay_accepts_pictures_in_every_kind_of_array(predictor: Predictor, tmp_path: Path) -> None:
    for found in kinds(tmp_path).values():
        plain, *others = found.values()
        expected = predictor.stream(renewal="replay")
        stream = predictor.stream(renewal="replay")
        for other in others[:3]:
            expected.push(plain)
            stream.push(other)
        assert stream.snapshot() == expected.snapshot()
        with pytest.raises(ValueError, match="read-only"):
            stream.snapshot().frames[:] = 0  # type: ignore[index]
