"""Snapshot of a stream, a value that can be kept in a file."""

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
DIGEST, STATE = "sha256", "state."
"""Name of the hash in a file, and the prefix of state tensors: `state.NAME` in schema 1, `state.I.NAME` in schema 2."""


class ReadOnlyDict(dict[str, NDArray[Any]]):
    """Dictionary whose entries cannot be changed by accident; `dict(it)` is one that can."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("snapshot: its states cannot be changed; change a copy, dict(state)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadOnlyDict, (dict(self),)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Stream at one moment, as a value: restore it, fork it, pickle or save it for another process.

    Two are equal if all their fields are, arrays by type, shape and bits: NaN equals the same NaN, and 0.0 is not -0.0.
    Its arrays are read-only, in copies and after pickling too. An array that can be written is copied when a snapshot
    is made of it; one that is read-only and owns its memory is taken as it is.
    """

    identity: str
    """Identity of the network that it belongs to."""
    states: tuple[Mapping[str, NDArray[Any]], ...]
    """States of the stream, the oldest first, each as `contract.States` describes it for one stream."""
    prediction: NDArray[np.float32] | None
    """Prediction of the next frame, [1, C, H, W]; None before the first."""
    pushed: int
    """Number of pictures seen."""
    renewal: str = "none"
    """Renewal of the stream, such as `refresh:2`."""
    context_length: int = 10
    """C, the context that the renewal goes by (frames)."""
    frames: NDArray[Any] | None = None
    """Last pictures of a stream that replays them, uint8 [n, H, W, C] or float32 [n, C, H, W], n at most C."""

    def __post_init__(self) -> None:
        frozen: dict[str, Any] = {
            "states": tuple(ReadOnlyDict((name, fixed(one)) for name, one in state.items()) for state in self.states),
            "prediction": None if self.prediction is None else fixed(self.prediction),
            "frames": None if self.frames is None else fixed(self.frames),
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
        """Pickle and copy it by making it anew, as arrays that come out of a pickle can be written."""
        return Snapshot, tuple(getattr(self, field.name) for field in fields(self))

    def _facts(self) -> tuple[Any, ...]:
        """Return all fields but arrays."""
        return self.identity, self.pushed, self.renewal, self.context_length, len(self.states)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays, by the names that they have in a file."""
        optional = {"prediction": self.prediction, "frames": self.frames}
        return {
            **{name: one for name, one in optional.items() if one is not None},
            **{f"{STATE}{i}.{name}": one for i, state in enumerate(self.states) for name, one in state.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all; one that is there is replaced, and keeps its mode.

        A link stays, and the file that it leads to is written; a pipe or device gets the bytes.

        It is an .npz without pickles: `schema`, `identity`, `pushed`, `renewal`, `context_length`, `prediction` and
        `frames` where there are some, a `state.I.NAME` for each tensor of state I, and `sha256` over all of them.

        Raises:
            OSError: it cannot be written, with its name.
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
        """Read a snapshot from a file; `restore` checks which network it is of.

        Raises:
            SnapshotError: the file is missing, damaged, or of a later schema.
        """
        arrays = _read(Path(path))
        schema = arrays.get("schema")
        if schema is None or schema.shape != () or schema not in READS:
            raise SnapshotError(
                f"{path}: snapshot of schema {schema}, this version reads {' and '.join(map(str, READS))}; "
                "take it again with this version"
            )
        if str(arrays.pop(DIGEST, None)) != _digest(arrays):
            raise SnapshotError(
                f"{path}: altered since it was written, its SHA-256 is another; take the snapshot again"
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
    """Network that snapshots belong to."""

    identity: str
    """Identity of the snapshots that are taken."""
    earlier: tuple[str, ...] = ()
    """Identities that older versions gave to snapshots of the same network."""
    states: States | None = None
    """States of a stream; None leaves those of snapshots unchecked."""
    config: ModelConfig

    def check(self, snapshot: Snapshot) -> None:
        """Raise unless a snapshot is of this network.

        Raises:
            StreamError: it is of another one.
            SnapshotError: no snapshot, or its states, prediction or pictures have other names, shapes, types or values.
        """
        check_snapshot(snapshot)
        if snapshot.identity not in (self.identity, *self.earlier):
            raise StreamError("snapshot: taken from another network, whose state means nothing here; load its bundle")
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
            raise SnapshotError("snapshot: its frames are no pictures of this network; take it again with this bundle")


def check_snapshot(snapshot: Any) -> None:
    """Raise unless an object is a snapshot with sensible numbers.

    Raises:
        SnapshotError: it is not.
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


def fixed(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only array: the given one if it is that already and owns its memory, else a copy."""
    if type(array) is np.ndarray and not array.flags.writeable and array.base is None:
        return array
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def taken_over(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays that nobody else has, read-only, so that a snapshot does not copy them."""
    for array in state.values():
        array.flags.writeable = False
    return state


def renewal_of(snapshot: Snapshot, expected: Renewal | None) -> Renewal:
    """Return the renewal of a snapshot.

    Args:
        expected: renewal of the stream that is to go on from it; None for any.

    Raises:
        StreamError: it has another renewal.
        SnapshotError: an unknown renewal, or states, frames or a number of pictures that do not fit it.
    """
    check_snapshot(snapshot)
    try:
        own = Renewal.parse(snapshot.renewal, snapshot.context_length)
    except ConfigError as error:
        raise SnapshotError(f"snapshot: {error}; take it again") from error
    if (snapshot.prediction is not None) != (own.kind != "replay" and snapshot.pushed > 0):
        raise SnapshotError(
            f"snapshot: got {'no' if snapshot.prediction is None else 'a'} prediction after {snapshot.pushed} pictures "
            f"of {own}; take it again"
        )
    states = 0 if own.kind == "replay" else max(1, len(own.ages(snapshot.pushed)))
    frames = own.age(snapshot.pushed) if own.kind == "replay" else 0
    found = 0 if snapshot.frames is None else len(snapshot.frames)
    if (len(snapshot.states), found) != (states, frames):
        raise SnapshotError(
            f"snapshot: got {len(snapshot.states)} states and {found} frames, expected {states} and {frames} for "
            f"{own} after {snapshot.pushed} pictures; take it again"
        )
    if expected is not None and expected != own and {expected.kind, own.kind} != {"none"}:
        raise StreamError(
            f"snapshot: taken of a stream with the renewal {own} for a context of {own.context_length} frames, this "
            f"one has {expected} for {expected.context_length}; open a stream from the snapshot without naming one"
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
        raise SnapshotError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return taken_over({name: archive[name] for name in archive.files})
    # Whatever the reader of a damaged archive raises, and it raises many things.
    except Exception as error:
        raise SnapshotError(f"{path}: no snapshot, or a truncated one ({error}); take it again") from error


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over names, types, shapes and values, whatever their order in the file."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
