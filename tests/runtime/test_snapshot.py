"""Snapshots as files: they continue in another process, and altered files are refused."""

import copy
import dataclasses
import errno
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3d_deploy import cli, runtime
from e3d_deploy.errors import SnapshotError, StreamError
from e3d_deploy.runtime import Predictor, Snapshot
from tests.fake_backend import CONFIG, FakeBackend, picture, predictor_of

ACROSS_BACKENDS = 1e-5
"""Largest difference of frames when another backend continues from a snapshot; measured 6e-7 for the tiny network."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    stream = predictor_of(FakeBackend()).stream()
    stream.push(picture(100))
    stream.snapshot().save(tmp_path / "stream.npz")
    return tmp_path / "stream.npz"


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_another_process_goes_on_bit_for_bit(exported: Path, tmp_path: Path) -> None:
    clip = np.load(exported / "clip.npy")
    with runtime.load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor:
        stream = predictor.stream()
        for seen in clip[:5]:
            stream.push(seen)
        stream.snapshot().save(tmp_path / "stream.npz")
        code = f"""
import numpy as np
import e3d_deploy.runtime as e3d
with e3d.load({str(exported / "tiny.e3d")!r}, "onnxruntime", threads=1) as predictor:
    stream = predictor.stream(e3d.Snapshot.load({str(tmp_path / "stream.npz")!r}))
    assert stream.pushed == 5
    for picture in np.load({str(exported / "clip.npy")!r})[5:]:
        stream.push(picture)
    np.save({str(tmp_path / "there.npy")!r}, stream.forecast(4))
"""
        subprocess.run([sys.executable, "-c", code], check=True)
        for seen in clip[5:]:
            stream.push(seen)
        np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), stream.forecast(4))


@pytest.mark.parametrize("other", ["torch", "openvino"])
def test_another_backend_goes_on_within_rounding(exported: Path, tmp_path: Path, other: str) -> None:
    if other == "openvino":
        pytest.importorskip("openvino")
    clip = np.load(exported / "clip.npy")
    with (
        runtime.load(exported / "tiny.e3d", "onnxruntime", threads=1) as here,
        runtime.load(exported / "tiny.e3d", other, threads=1) as there,
    ):
        stream = here.stream()
        for seen in clip[:6]:
            stream.push(seen)
        stream.snapshot().save(tmp_path / "stream.npz")
        went_on = there.stream(Snapshot.load(tmp_path / "stream.npz"))
        for one in (stream, went_on):
            for seen in clip[6:]:
                one.push(seen)
        np.testing.assert_allclose(went_on.forecast(3), stream.forecast(3), rtol=0, atol=ACROSS_BACKENDS)


def test_before_the_first_picture_there_is_no_prediction(tmp_path: Path) -> None:
    predictor = predictor_of(FakeBackend())
    predictor.stream().snapshot().save(tmp_path / "new.npz")
    stream = predictor.stream(Snapshot.load(tmp_path / "new.npz"))
    assert (stream.pushed, stream.prediction) == (0, None)


def test_of_another_bundle(path: Path) -> None:
    other = Predictor(CONFIG, FakeBackend(), identity="another")
    with pytest.raises(StreamError, match="was taken from another network; load the bundle of that network"):
        other.stream(Snapshot.load(path))


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(SnapshotError, match=r"stream\.npz: .*(truncated|cannot be read)") as caught:
            Snapshot.load(path)
        assert caught.value.exit_code == 5


def test_an_altered_file_is_refused_or_says_the_same(path: Path) -> None:
    """Some bytes may change without effect, for example those of the time at which an entry was written."""
    content, expected = path.read_bytes(), Snapshot.load(path)
    refused = 0
    for place in range(0, len(content), 13):
        altered = bytearray(content)
        altered[place] ^= 0x40
        path.write_bytes(altered)
        try:
            found = Snapshot.load(path)
        except SnapshotError:
            refused += 1
            continue
        assert (found.identity, found.pushed) == (expected.identity, expected.pushed)
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        for ours, theirs in zip(found.states, expected.states, strict=True):
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)
    assert refused > len(content) // 26


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"pushed": np.array(7)},
        lambda _: {"state.0.mean": np.ones((1, 1, 4, 8), np.float32)},
        lambda arrays: {"state.0.mean": arrays["state.0.mean"].reshape(1, 1, 8, 4)},
        lambda arrays: {"state.0.mean": arrays["state.0.mean"].view(np.int32)},
        lambda _: {"x": 1},
    ],
)
def test_a_file_that_was_written_again_is_refused(path: Path, change: Callable[[Any], dict[str, Any]]) -> None:
    arrays = arrays_of(path)
    np.savez(path, **(arrays | change(arrays)))
    with pytest.raises(SnapshotError, match="does not match its SHA-256, so it was altered after it was written"):
        Snapshot.load(path)


def test_another_schema_is_refused(path: Path) -> None:
    np.savez(path, **(arrays_of(path) | {"schema": np.array(3)}))
    with pytest.raises(SnapshotError, match="snapshot has schema 3, this version reads 1 and 2"):
        Snapshot.load(path)


def test_what_is_no_snapshot_is_refused(path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        Snapshot.load(path.with_name("absent.npz"))
    np.savez(path, frames=np.zeros(3))
    with pytest.raises(SnapshotError, match="snapshot has schema None"):
        Snapshot.load(path)
    np.savez(path, schema=np.array({"a": "pickle"}, dtype=object))
    with pytest.raises(SnapshotError, match="not a snapshot, or truncated"):
        Snapshot.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SnapshotError, match="not a snapshot, or truncated"):
        Snapshot.load(path)


def test_a_save_that_fails_leaves_the_older_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, snapshot = path.read_bytes(), Snapshot.load(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*stream\.npz"):
        snapshot.save(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def snapshot(**changes: Any) -> Snapshot:
    """Return a small snapshot, with some fields changed."""
    values: dict[str, Any] = {
        "identity": "network",
        "states": ({"memory": np.array([0.0, np.nan, 2.0], np.float32), "written": np.array([1], np.int32)},),
        "prediction": np.array([[0.5, np.nan]], np.float32),
        "pushed": 3,
        "renewal": "none",
        "context_length": 10,
        "frames": np.arange(4, dtype=np.uint8),
    }
    return Snapshot(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": "another"},
        {"pushed": 4},
        {"renewal": "refresh:2"},
        {"context_length": 11},
        {"states": ()},
        {"states": ({"memory": np.array([0.0, np.nan, 2.0], np.float32)},)},
        {"states": ({"memory": np.array([0.0, np.nan, 3.0], np.float32), "written": np.array([1], np.int32)},)},
        {"states": ({"memory": np.array([-0.0, np.nan, 2.0], np.float32), "written": np.array([1], np.int32)},)},
        {"states": ({"memory": np.array([0.0, np.nan, 2.0], np.float32), "written": np.array([1], np.int64)},)},
        {"prediction": None},
        {"prediction": np.array([0.5, np.nan], np.float32)},
        {"prediction": np.array([[0.5, np.nan]], np.float64)},
        {"frames": None},
        {"frames": np.arange(1, 5, dtype=np.uint8)},
        {"frames": np.arange(4, dtype=np.int8)},
    ],
)
def test_a_snapshot_differs_if_any_field_does(changes: dict[str, Any]) -> None:
    one, same, other = snapshot(), snapshot(), snapshot(**changes)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert other not in [one, same]
    assert other == snapshot(**changes)  # also if an array contains NaN


def test_a_snapshot_is_not_compared_with_other_things() -> None:
    one = snapshot()
    assert one.__eq__(dataclasses.astuple(one)) is NotImplemented
    assert one != "snapshot"
    assert one not in [None, 3, np.float32(3)]


def test_a_snapshot_does_not_share_arrays_that_their_owner_may_write() -> None:
    memory, prediction, frames = np.zeros(3, np.float32), np.zeros((1, 2), np.float32), np.zeros(4, np.uint8)
    view = frames[:2]
    view.flags.writeable = False  # The base of the view can still be written.
    state = {"memory": memory}
    one = snapshot(states=(state,), prediction=prediction, frames=view)
    expected = snapshot(states=({"memory": np.zeros(3, np.float32)},), prediction=prediction.copy(), frames=view.copy())
    for array in (memory, prediction, frames):
        assert array.flags.writeable
        array[:] = 1
    state["memory"] = state["more"] = memory
    assert one == expected
    kept = one.states[0]["memory"]
    assert dataclasses.replace(one, pushed=4).states[0]["memory"] is kept  # not copied, because it is read-only


def test_no_array_of_a_snapshot_can_be_written(path: Path) -> None:
    snapshot(frames=None).save(path)
    one = snapshot()
    copies = [copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one)), dataclasses.replace(one, pushed=1)]
    for found in (one, Snapshot.load(path), *copies):
        assert found.prediction is not None
        arrays = [found.prediction, *found.states[0].values()] + ([] if found.frames is None else [found.frames])
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            with pytest.raises(ValueError, match="read-only"):
                array += 1


def test_the_states_of_a_snapshot_cannot_be_replaced() -> None:
    [state] = snapshot().states
    assert isinstance(state, dict)
    for change in (
        lambda: state.__setitem__("memory", np.zeros(3)),
        lambda: state.__delitem__("memory"),
        lambda: state.update(memory=np.zeros(3)),
        lambda: state.__ior__({"memory": np.zeros(3)}),
        lambda: state.pop("memory"),
        state.popitem,
        lambda: state.setdefault("more", np.zeros(3)),
        state.clear,
    ):
        with pytest.raises(TypeError, match=r"its states cannot be changed; change a copy, dict\(state\)"):
            change()
    assert list(pickle.loads(pickle.dumps(state))) == list(state | {}) == list(dict(state)) == ["memory", "written"]
    assert list(dataclasses.asdict(snapshot())["states"][0]) == ["memory", "written"]


@pytest.mark.usefixtures("devices_stay")
def test_a_full_disk_is_one_line_and_exit_code_7(tmp_path: Path) -> None:
    (tmp_path / "stream.npz").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        snapshot().save(tmp_path / "stream.npz")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "stream.npz"))
    assert cli.explain(error.value) == (
        f"{tmp_path / 'stream.npz'}: No space left on device; free space, or write to another disk",
        7,
    )


def _odd(snapshot: Snapshot) -> list[Any]:
    frames = np.full((snapshot.pushed, 1, 4, 8), 9, np.float32)
    return [
        "camera.npz",
        dataclasses.replace(snapshot, pushed=0),
        dataclasses.replace(snapshot, pushed=snapshot.pushed + 0.5),  # type: ignore[arg-type]
        dataclasses.replace(snapshot, pushed=str(snapshot.pushed)),  # type: ignore[arg-type]
        dataclasses.replace(snapshot, context_length="x"),  # type: ignore[arg-type]
        dataclasses.replace(snapshot, prediction=None),
        dataclasses.replace(snapshot, prediction=np.zeros((1, 1, 4, 9), np.float32)),
        dataclasses.replace(snapshot, prediction=np.zeros((1, 1, 4, 8), np.float64)),
        dataclasses.replace(snapshot, prediction=np.full((1, 1, 4, 8), np.nan, np.float32)),
        dataclasses.replace(snapshot, states=(), prediction=None, renewal="replay", frames=frames),
    ]


@pytest.mark.parametrize("of_many", [True, False])
def test_what_no_stream_can_go_on_from_is_refused_and_harms_none(of_many: bool) -> None:
    predictor = predictor_of(FakeBackend())
    with predictor.streams() as streams:
        open_stream: Any = streams.open if of_many else predictor.stream
        stream, beside = open_stream(), streams.open()
        for each in (stream, beside):
            each.push(picture(3))
            each.push(picture(4))
        expected = stream.forecast(3)
        for odd in _odd(stream.snapshot()):
            for call in (open_stream, stream.restore):
                with pytest.raises(SnapshotError, match="snapshot: "):
                    call(odd)
        for each in (stream, beside):
            np.testing.assert_array_equal(each.forecast(3), expected)
