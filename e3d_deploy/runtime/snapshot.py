"""A stream at one moment, as a value and as a file."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import SnapshotError
from e3d_deploy.files import write_file

SCHEMA = 1
DIGEST, STATE = "sha256", "state."
"""Name of the hash in a file, and what stands before the names of state tensors there."""


@dataclass(frozen=True)
class Snapshot:
    """A stream at one moment, as a value: restore it, fork it, pickle or save it for another process."""

    identity: str
    """Of the weights and graphs it belongs to."""
    state: dict[str, NDArray[Any]]
    """As `contract.states` describes it, of one stream."""
    prediction: NDArray[np.float32] | None
    """Of the next frame, [1, C, H, W]; None before the first."""
    pushed: int
    """Pictures seen."""

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all; one that is there is replaced.

        It is an .npz without pickles: `schema`, `identity`, `pushed`, `prediction` where there is one, a
        `state.NAME` per tensor, and `sha256` over all of them.

        Raises:
            OSError: it cannot be written, with its name.
        """
        arrays = {
            "schema": np.array(SCHEMA),
            "identity": np.array(self.identity),
            "pushed": np.array(self.pushed),
            **({} if self.prediction is None else {"prediction": self.prediction}),
            **{STATE + name: array for name, array in self.state.items()},
        }
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays, **{DIGEST: np.array(_digest(arrays))})
        write_file(Path(path), file.getbuffer())

    @classmethod
    def load(cls, path: str | Path) -> "Snapshot":
        """The snapshot in a file. `restore` checks whose it is.

        Raises:
            SnapshotError: there is none, it is damaged, or of another schema.
        """
        arrays = _read(Path(path))
        schema = arrays.get("schema")
        if schema is None or schema.shape != () or schema != SCHEMA:
            raise SnapshotError(
                f"{path}: snapshot of schema {schema}, this version reads {SCHEMA}; take it again with this version"
            )
        if str(arrays.pop(DIGEST, None)) != _digest(arrays):
            raise SnapshotError(
                f"{path}: altered since it was written, its SHA-256 is another; take the snapshot again"
            )
        return cls(
            identity=str(arrays["identity"]),
            state={name.removeprefix(STATE): array for name, array in arrays.items() if name.startswith(STATE)},
            prediction=arrays.get("prediction"),
            pushed=int(arrays["pushed"]),
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # Whatever the reader of a damaged archive raises, and it raises many things.
    except Exception as error:
        raise SnapshotError(f"{path}: no snapshot, or a truncated one ({error}); take it again") from error


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Over names, types, shapes and values, whatever their order in the file."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
