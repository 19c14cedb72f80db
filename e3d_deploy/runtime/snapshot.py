"""Snapshot of a stream: its state as a value, which can be saved to a file and restored."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.contract import States
from e3d_deploy.errors import ConfigError, SnapshotError, StreamError
from e3d_deploy.files import write_file
from e3d_deploy.runtime.renewal import Renewal

SCHEMA, READS = 2, (1, 2)
"""Schema version that `save` writes, and all versions that `load` reads."""
DIGEST, STATE = "sha256", "state."
"""Name of the hash in a snapshot file, and prefix of the names of state tensors.

In schema 1, a tensor is called `state.NAME`; in schema 2, `state.I.NAME`, where I is the number of the state.
"""


class ReadOnlyDict(dict[str, NDArray[Any]]):
    """Dictionary that refuses changes; `dict(state)` makes a copy that can be changed."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("snapshot: its states cannot be changed; change a copy, dict(state)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadOnlyDict, (dict(self),)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a stream after a number of pictures, as a value that can be restored, pickled and saved.

    Two snapshots are equal if all their fields are equal. Arrays are compared by type, shape and bits: a NaN equals a
    NaN with the same bits, and 0.0 differs from -0.0. All arrays of a snapshot are read-only, also after copying and
    pickling. The constructor copies writable arrays and shares arrays that are read-only and own their memory.
    """

    identity: str
    """Identity of the network that the snapshot belongs to."""
    states: tuple[Mapping[str, NDArray[Any]], ...]
    """States of the stream, oldest first, each with the tensors that `contract.States` describes."""
    prediction: NDArray[np.float32] | None
    """Prediction of the next frame, [1, C, H, W]; None before the first picture, and for the renewal `replay`."""
    pushed: int
    """Number of pictures that the stream has seen."""
    renewal: str = "none"
    """Renewal of the stream, such as `refresh:2`."""
    context_length: int = 10
    """Context length of the renewal (frames); the ages of the states depend on it."""
    frames: NDArray[Any] | None = None
    """Last n pictures of a `replay` stream, n ≤ `context_length`; None for other renewals.

    uint8 [n, H, W, C], or float32 [n, C, H, W].
    """

    def __post_init__(self) -> None:
        frozen: dict[str, Any] = {
            "states": tuple(
                ReadOnlyDict((name, read_only(one)) for name, one in state.items()) for state in self.states
            ),
            "prediction": None if self.prediction is None else read_only(self.prediction),
            "frames": None if self.frames is None else read_only(self.frames),
        }
        for name, value in frozen.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        if self is other:
            return True
        ours, theirs = self._arrays(), other._arrays()
        return (
            self._facts() == other._facts()
            and ours.keys() == theirs.keys()
            and all(_same_bits(one, theirs[name]) for name, one in ours.items())
        )

    def __hash__(self) -> int:
        return hash((self._facts(), None if self.prediction is None else self.prediction.tobytes()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the constructor, which makes the arrays read-only; pickle returns writable arrays."""
        return Snapshot, tuple(getattr(self, field.name) for field in fields(self))

    def _facts(self) -> tuple[Any, ...]:
        """Return all fields that are not arrays."""
        return self.identity, self.pushed, self.renewal, self.context_length, len(self.states)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by their names in a file."""
        optional = {"prediction": self.prediction, "frames": self.frames}
        return {
            **{name: one for name, one in optional.items() if one is not None},
            **{f"{STATE}{i}.{name}": one for i, state in enumerate(self.states) for name, one in state.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write the snapshot to a file, which appears only when it is complete.

        An existing file is replaced, and its permissions are kept. If `path` is a link, the file that it points to is
        replaced. If `path` is a pipe or a device, the bytes are written to it.

        The file is an .npz archive without pickles. It contains `schema`, `identity`, `pushed`, `renewal` and
        `context_length`; `prediction` and `frames` if they are not None; `state.I.NAME` for each tensor of state I; and
        `sha256`, the hash of all these entries.

        Raises:
            OSError: the file cannot be written; the error names the file.
        """
        arrays: dict[str, Any] = {
            "schema": np.array(SCHEMA),
            "identity": np.array(self.identity),
            "pushed": np.array(self.pushed),
            "renewal": np.array(self.renewal),
            "context_length": np.array(self.context_length),
            **self._arrays(),
        }
        file = io.BytesIO()
        arrays[DIGEST] = np.array(_digest(arrays))
        np.savez(file, **arrays)
        write_file(Path(path), file.getbuffer())

    @classmethod
    def load(cls, path: str | Path) -> "Snapshot":
        """Read a snapshot from a file; `restore` checks that the snapshot belongs to the network.

        Raises:
            SnapshotError: the file is missing or damaged, or has a schema that this version cannot read.
        """
        arrays = _read(Path(path))
        schema = arrays.get("schema")
        if schema is None or schema.shape != () or schema not in READS:
            raise SnapshotError(
                f"{path}: snapshot has schema {schema}, this version reads {' and '.join(map(str, READS))}; "
                "take it again with this version"
            )
        if str(arrays.pop(DIGEST, None)) != _digest(arrays):
            raise SnapshotError(
                f"{path}: does not match its SHA-256, so it was altered after it was written; take the snapshot again"
            )
        return cls(
            identity=str(arrays["identity"]),
            states=_states(arrays),
            prediction=arrays.get("prediction"),
            pushed=int(arrays["pushed"]),
            renewal=str(arrays.get("renewal", "none")),
            context_length=int(arrays.get("context_length", 10)),
            frames=arrays.get("frames"),
        )


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Properties of a network that are compared with its snapshots."""

    identity: str
    """Identity that new snapshots receive."""
    earlier: tuple[str, ...] = ()
    """Identities that older versions gave to snapshots of the same network."""
    states: States | None = None
    """Description of a stream's state; None leaves the states of snapshots unchecked."""
    config: ModelConfig

    def check(self, snapshot: Snapshot) -> None:
        """Check that a snapshot belongs to this network.

        Raises:
            StreamError: the snapshot belongs to another network.
            SnapshotError: `snapshot` is not a snapshot, or its states, prediction or pictures have unexpected names,
                shapes, types or values.
        """
        check_snapshot(snapshot)
        if snapshot.identity not in (self.identity, *self.earlier):
            raise StreamError("snapshot: was taken from another network; load the bundle of that network")
        for arrays in snapshot.states:
            if self.states is not None and (odd := self.states.difference(arrays)):
                raise SnapshotError(f"snapshot: state {odd}; take it again with this bundle")
        frame, C = contract.frame(self.config).shape, self.config.channels
        if (prediction := snapshot.prediction) is not None and not _is_array(prediction, np.float32, frame):
            raise SnapshotError(
                f"snapshot: got a prediction {list(prediction.shape)} {prediction.dtype}, expected {list(frame)} "
                "float32; take it again with this bundle"
            )
        if prediction is not None and not np.isfinite(prediction).all():
            raise SnapshotError("snapshot: its prediction is not finite; take it again with this bundle")
        if (seen := snapshot.frames) is None:
            return
        pictures = _is_array(seen, np.uint8, (len(seen), *self.config.image_size, C))
        if not pictures and not (
            _is_array(seen, np.float32, (len(seen), *frame[1:])) and bool(((seen >= 0) & (seen <= 1)).all())
        ):
            raise SnapshotError(
                f"snapshot: got frames {list(seen.shape)} {seen.dtype}, expected "
                f"{[len(seen), *self.config.image_size, C]} uint8 or {[len(seen), *frame[1:]]} float32 in [0, 1]; "
                "take it again with this bundle"
            )


def check_snapshot(snapshot: Any) -> None:
    """Check that an object is a snapshot whose `pushed` and `context_length` are whole numbers of 0 or more.

    Raises:
        SnapshotError: the object is not such a snapshot.
    """
    if not isinstance(snapshot, Snapshot):
        raise SnapshotError(
            f"snapshot: got {type(snapshot).__name__}, expected a Snapshot; read a file with `Snapshot.load`"
        )
    for name in ("pushed", "context_length"):
        if type(value := getattr(snapshot, name)) is not int or value < 0:
            raise SnapshotError(f"snapshot: got {name} {value!r}, expected a whole number of 0 or more; take it again")


def _is_array(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` if it is read-only and owns its memory, otherwise a read-only copy."""
    if type(array) is np.ndarray and not array.flags.writeable and array.base is None:
        return array
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def freeze_owned(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Make the arrays of a state read-only, so that a snapshot shares them instead of copying them.

    The caller must hold the only references to the arrays.
    """
    for array in state.values():
        array.flags.writeable = False
    return state


def renewal_of(snapshot: Snapshot, expected: Renewal | None) -> Renewal:
    """Return the renewal of a snapshot, after checking that the remaining fields agree with the renewal.

    Args:
        expected: renewal of the stream that will continue from the snapshot; None accepts every renewal. Two renewals
            `none` agree even if their context lengths differ.

    Raises:
        StreamError: the renewal of the snapshot differs from `expected`.
        SnapshotError: the renewal is unknown, or the number of states, frames or pictures does not agree with it.
    """
    check_snapshot(snapshot)
    try:
        own = Renewal.parse(snapshot.renewal, snapshot.context_length)
    except ConfigError as error:
        raise SnapshotError(f"snapshot: {error}; take it again") from error
    if (snapshot.prediction is not None) != (own.kind != "replay" and snapshot.pushed > 0):
        raise SnapshotError(
            f"snapshot: got {'no' if snapshot.prediction is None else 'a'} prediction after {snapshot.pushed} pictures "
            f"with renewal {own}; take it again"
        )
    states = 0 if own.kind == "replay" else max(1, len(own.ages(snapshot.pushed)))
    frames = own.age(snapshot.pushed) if own.kind == "replay" else 0
    found = 0 if snapshot.frames is None else len(snapshot.frames)
    if (len(snapshot.states), found) != (states, frames):
        raise SnapshotError(
            f"snapshot: got {len(snapshot.states)} states and {found} frames, expected {states} and {frames} for "
            f"renewal {own} after {snapshot.pushed} pictures; take it again"
        )
    if expected is not None and expected != own and {expected.kind, own.kind} != {"none"}:
        raise StreamError(
            f"snapshot: has the renewal {own} for a context of {own.context_length} frames, the stream has {expected} "
            f"for {expected.context_length} frames; open a stream from the snapshot without `renewal`"
        )
    return own


def _states(arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], ...]:
    tensors = {name.removeprefix(STATE): array for name, array in arrays.items() if name.startswith(STATE)}
    if arrays["schema"] == 1:
        return (tensors,)
    states: dict[int, dict[str, NDArray[Any]]] = {}
    for name, array in tensors.items():
        number, _, tensor = name.partition(".")
        states.setdefault(int(number), {})[tensor] = array
    return tuple(states[number] for number in sorted(states))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SnapshotError(
            f"{path}: cannot be read ({error.strerror}); give a file that `Snapshot.save` wrote"
        ) from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return freeze_owned({name: archive[name] for name in archive.files})
    except Exception as error:  # NumPy and zipfile raise many types of errors for a damaged archive.
        raise SnapshotError(f"{path}: not a snapshot, or truncated ({error}); take it again") from error


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over the names, types, shapes and values of arrays, in order of their names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
