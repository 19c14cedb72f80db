"""Model files split into small parts, for transfers that accept only small files.

Each part is a safetensors file with one tensor, a piece of the bytes of a float16 model file, and metadata: the run,
the optimizer step, the hash of the model file, the number of this part, the number of parts, and the hash of the piece.
A run writes two sets alternately, `model-a.part-…` and `model-b.part-…`. One set is therefore complete even if the
machine stops while the other set is being written. Joining the parts needs only NumPy.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from e3d_deploy.errors import CheckpointError, CheckpointMissing, ConfigError
from e3d_deploy.files import write_file
from e3d_deploy.tensors import KEY, read_tensors

if TYPE_CHECKING:
    from e3d_deploy.card import Card as ModelCard
    from e3d_deploy.model import E3DLSTM

FORMAT = 1
PATTERN = "*.part-*-of-*.safetensors"
MAX_BYTES = 16 * 2**20
"""Maximum size of a part: 16 MiB."""
CARD_BYTES = 4096
"""Space reserved for the metadata in a part (bytes)."""
MAX_PARTS = 64
"""Maximum number of parts."""
AGAIN = "fetch it again"
"""Remedy for a damaged part."""
NAMED = 3
"""Maximum number of missing parts named in an error."""


@dataclass(frozen=True, kw_only=True)
class PartMetadata:
    """Metadata of a part, different from the card of the model."""

    run: str
    """Random name of the run."""
    step: int
    """Optimizer steps done."""
    model_sha256: str
    """SHA-256 hash of the model file."""
    number: int
    """Number of the part, from 1."""
    count: int
    """Number of parts of the model file."""
    sha256: str
    """SHA-256 hash of the piece in this part."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str if field.type is str else int
            if type(value) is not kind:  # a bool is an int to isinstance
                raise ValueError(f"{field.name}: got {value!r}, expected {kind.__name__}")
        if self.step < 0:
            raise ValueError(f"step: got {self.step}, expected 0 or more")
        if not 1 <= self.number <= self.count <= MAX_PARTS:
            raise ValueError(f"part {self.number} of {self.count}: expected 1 to {MAX_PARTS}")


@dataclass(frozen=True, kw_only=True)
class JoinedModel:
    """Model file joined from its parts."""

    content: bytes
    """Bytes of the model file."""
    step: int
    """Optimizer steps done."""
    left_out: tuple[str, ...]
    """One sentence for each part or set that was not used, with the reason."""


def save_parts(
    model: "E3DLSTM",
    folder: Path,
    name: str,
    *,
    run: str,
    step: int,
    max_bytes: int = MAX_BYTES,
    model_card: "ModelCard | None" = None,
) -> list[Path]:
    """Write the weights as float16 to `NAME.part-1-of-2.safetensors` and so on, each file atomically.

    Args:
        max_bytes: maximum size of a file (bytes).
        model_card: card of the model file.

    Raises:
        CheckpointError: A weight is too large for float16.
        ConfigError: `max_bytes` leaves no space for weights, or requires more than `MAX_PARTS` parts.
        OSError: A file cannot be written.
    """
    import torch
    from safetensors.numpy import save as serialize

    from e3d_deploy import checkpoint

    whole = checkpoint.content(model, card=model_card, dtype=torch.float16)
    size = max_bytes - CARD_BYTES
    if size < 1:
        raise ConfigError(f"max_bytes: got {max_bytes}, expected more than {CARD_BYTES}")
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    if len(pieces) > MAX_PARTS:
        raise ConfigError(
            f"max_bytes: {max_bytes} needs {len(pieces)} parts, expected at most {MAX_PARTS}; allow more bytes"
        )
    digest, paths = hashlib.sha256(whole).hexdigest(), []
    for number, piece in enumerate(pieces, 1):
        part = PartMetadata(
            run=run,
            step=step,
            model_sha256=digest,
            number=number,
            count=len(pieces),
            sha256=hashlib.sha256(piece).hexdigest(),
        )
        paths.append(folder / f"{name}.part-{number}-of-{len(pieces)}.safetensors")
        metadata = {KEY: json.dumps({"part_format": FORMAT, **asdict(part)})}
        write_file(paths[-1], serialize({"bytes": np.frombuffer(piece, np.uint8)}, metadata))
    return paths


def find_parts(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and the parts in the given folders, without duplicates.

    Raises:
        CheckpointError: A path does not exist, or a folder contains no parts.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
        if not path.exists():
            raise CheckpointMissing(
                f"{path}: no such file or folder; give the folder that `e3d train --parts` wrote to"
            )
        if not inside:
            raise CheckpointError(f"{path}: has no {PATTERN}; give the folder that `e3d train --parts` wrote to")
        for part in inside:
            found.setdefault(part.resolve(), part)
    return list(found.values())


def join(paths: Sequence[Path]) -> JoinedModel:
    """Join the parts of a model file. If the parts contain several complete sets of one run, the newest is used.

    A damaged part counts as missing, because an older set may be complete.

    Raises:
        CheckpointError: A part is given twice, the parts belong to several runs, or no set is complete.
    """
    known: dict[Path, PartMetadata] = {}
    left_out: list[str] = []
    for path in paths:
        try:
            known[path] = read_metadata(path)
        except CheckpointError as error:
            left_out.append(str(error))
    sets = _sets(known)
    for step, digest, count in sorted(sets, reverse=True):
        members = sets[step, digest, count]
        if missing := [number for number in range(1, count + 1) if number not in members]:
            left_out.append(f"step {step} lacks {_missing_names(members, missing)}")
            continue
        try:
            content = _content([(members[number], known[members[number]]) for number in range(1, count + 1)])
        except CheckpointError as error:
            left_out.append(str(error))
            continue
        older = [f"step {other} is older" for other, *_ in sets if other < step]
        return JoinedModel(content=content, step=step, left_out=(*left_out, *older))
    raise CheckpointError(f"{paths[0].parent}: no model is complete: {'; '.join(left_out)}; fetch these parts again")


def _sets(known: dict[Path, PartMetadata]) -> dict[tuple[int, str, int], dict[int, Path]]:
    """Group parts into sets of the same step, model and number of parts; within a set, parts are keyed by number."""
    sets: dict[tuple[int, str, int], dict[int, Path]] = defaultdict(dict)
    for path, part in known.items():
        first = next(iter(known))
        if part.run != known[first].run:
            raise CheckpointError(
                f"{path}: belongs to a different run than {first.name} ({part.run!r}, not {known[first].run!r}); "
                "join only parts of one run"
            )
        members = sets[part.step, part.model_sha256, part.count]
        if part.number in members:
            raise CheckpointError(f"{path}: is the same part as {members[part.number]}; give each part once")
        members[part.number] = path
    return sets


def _missing_names(members: dict[int, Path], missing: Sequence[int]) -> str:
    """Return the names of missing parts, derived from the name of an existing part."""
    here, path = next(iter(members.items()))
    names = ", ".join(path.name.replace(f"part-{here}-", f"part-{number}-") for number in missing[:NAMED])
    return names + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")


def _content(members: Sequence[tuple[Path, PartMetadata]]) -> bytes:
    """Join the bytes of a complete set of parts.

    Raises:
        CheckpointError: A part is damaged, or the hash of the result is wrong.
    """
    content = b"".join(_read_bytes(path, part) for path, part in members)
    path, part = members[0]
    if hashlib.sha256(content).hexdigest() != part.model_sha256:
        raise CheckpointError(f"{path}: the parts of step {part.step} do not match the hash of the model file")
    return content


def read_metadata(path: Path) -> PartMetadata:
    """Read the metadata of a part.

    Raises:
        CheckpointError: The file is damaged, or is not a part.
    """
    _, metadata = read_tensors(path, remedy=AGAIN)
    try:
        entries = json.loads(metadata[KEY])
        if entries.pop("part_format") != FORMAT:
            raise CheckpointError(
                f"{path}: a part of a different format, but this version joins format {FORMAT}; update e3d_deploy"
            )
        return PartMetadata(**entries)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a part of a model; give the parts that `e3d train --parts` wrote"
        ) from error


def _read_bytes(path: Path, part: PartMetadata) -> bytes:
    tensors, _ = read_tensors(path, remedy=AGAIN)
    piece = tensors["bytes"].tobytes() if "bytes" in tensors else b""
    if hashlib.sha256(piece).hexdigest() != part.sha256:
        raise CheckpointError(f"{path}: is damaged, its bytes do not match their hash; {AGAIN}")
    return piece
