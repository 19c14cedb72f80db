"""A model as several small files, for transfers that accept only small files.

Each part is a safetensors file with one tensor, a piece of the bytes of a float16 model file, and a card: the run, the
step, the hash of the whole model file, which part of how many it is, and its own hash. A run writes two sets in turn,
`model-a.part-…` and `model-b.part-…`: a machine that goes away while one is written leaves the other one whole. Joining
needs NumPy alone.
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
"""Largest part, 16 MiB."""
CARD_BYTES = 4096
"""Room for the card in a part."""
MOST = 64
"""Largest number of parts."""
AGAIN = "fetch it again"
"""Remedy for a damaged part."""
NAMED = 3
"""Missing parts that are named."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Metadata of a part."""

    run: str
    """Random name of the run."""
    step: int
    """Optimizer steps done."""
    model_sha256: str
    """Hash of the whole model file."""
    number: int
    """Number of the part, from 1."""
    count: int
    """Parts of the model file."""
    sha256: str
    """Hash of this part's bytes."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str if field.type is str else int
            if type(value) is not kind:  # a bool is an int to isinstance
                raise ValueError(f"{field.name}: got {value!r}, expected {kind.__name__}")
        if self.step < 0:
            raise ValueError(f"step: got {self.step}, expected 0 or more")
        if not 1 <= self.number <= self.count <= MOST:
            raise ValueError(f"part {self.number} of {self.count}: expected 1 to {MOST}")


@dataclass(frozen=True, kw_only=True)
class JoinedModel:
    """A model file put together."""

    content: bytes
    """Bytes of the model file."""
    step: int
    """Optimizer steps done."""
    left_out: tuple[str, ...]
    """A sentence for each set that was not taken."""


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
    """Write the weights as float16 to `NAME.part-1-of-2.safetensors` and so on, each file whole or not at all.

    Args:
        max_bytes: largest file that is written.
        model_card: card of the model file that they make.

    Raises:
        CheckpointError: a weight beyond the largest float16.
        ConfigError: files so small that they hold nothing, or that too many are needed.
        OSError: a file cannot be written.
    """
    import torch
    from safetensors.numpy import save as serialize

    from e3d_deploy import checkpoint

    whole = checkpoint.content(model, card=model_card, dtype=torch.float16)
    size = max_bytes - CARD_BYTES
    if size < 1:
        raise ConfigError(f"max_bytes: got {max_bytes}, expected more than {CARD_BYTES}")
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    if len(pieces) > MOST:
        raise ConfigError(
            f"max_bytes: {max_bytes} needs {len(pieces)} parts, expected at most {MOST}; allow more bytes"
        )
    digest, paths = hashlib.sha256(whole).hexdigest(), []
    for number, piece in enumerate(pieces, 1):
        card = Card(
            run=run,
            step=step,
            model_sha256=digest,
            number=number,
            count=len(pieces),
            sha256=hashlib.sha256(piece).hexdigest(),
        )
        paths.append(folder / f"{name}.part-{number}-of-{len(pieces)}.safetensors")
        metadata = {KEY: json.dumps({"part_format": FORMAT, **asdict(card)})}
        write_file(paths[-1], serialize({"bytes": np.frombuffer(piece, np.uint8)}, metadata))
    return paths


def find_parts(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and the parts in the given folders, each file once.

    Raises:
        CheckpointError: a path that is not there, or a folder without parts.
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
    """Put a model file together from its parts; of several whole sets of one run the newest is taken.

    A damaged part counts as missing: the machine that wrote it may be gone, and an older set is whole.

    Raises:
        CheckpointError: a part that is there twice, parts of two runs, or no set that is whole.
    """
    cards: dict[Path, Card] = {}
    left_out: list[str] = []
    for path in paths:
        try:
            cards[path] = read_card(path)
        except CheckpointError as error:
            left_out.append(str(error))
    sets = _sets(cards)
    for step, digest, count in sorted(sets, reverse=True):
        members = sets[step, digest, count]
        if missing := [number for number in range(1, count + 1) if number not in members]:
            left_out.append(f"step {step} lacks {_named(members, missing)}")
            continue
        try:
            content = _content([(members[number], cards[members[number]]) for number in range(1, count + 1)])
        except CheckpointError as error:
            left_out.append(str(error))
            continue
        older = [f"step {other} is older" for other, *_ in sets if other < step]
        return JoinedModel(content=content, step=step, left_out=(*left_out, *older))
    raise CheckpointError(f"{paths[0].parent}: no model is whole: {'; '.join(left_out)}; fetch these parts again")


def _sets(cards: dict[Path, Card]) -> dict[tuple[int, str, int], dict[int, Path]]:
    """Return the parts of each set by number; a set has a step, a model and a count of parts."""
    sets: dict[tuple[int, str, int], dict[int, Path]] = defaultdict(dict)
    for path, card in cards.items():
        first = next(iter(cards))
        if card.run != cards[first].run:
            raise CheckpointError(
                f"{path}: is of another run than {first.name} ({card.run!r}, not {cards[first].run!r}); "
                "join one run alone"
            )
        members = sets[card.step, card.model_sha256, card.count]
        if card.number in members:
            raise CheckpointError(f"{path}: is the same part as {members[card.number]}; give each part once")
        members[card.number] = path
    return sets


def _named(members: dict[int, Path], missing: Sequence[int]) -> str:
    """Return the names of missing parts, made from that of one that is there."""
    here, path = next(iter(members.items()))
    names = ", ".join(path.name.replace(f"part-{here}-", f"part-{number}-") for number in missing[:NAMED])
    return names + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")


def _content(members: Sequence[tuple[Path, Card]]) -> bytes:
    """Return the model file that the parts of a set make.

    Raises:
        CheckpointError: a part is damaged, or they make something else.
    """
    content = b"".join(_read_bytes(path, card) for path, card in members)
    path, card = members[0]
    if hashlib.sha256(content).hexdigest() != card.model_sha256:
        raise CheckpointError(f"{path}: the parts of step {card.step} do not make the model that they are of")
    return content


def read_card(path: Path) -> Card:
    """Read the card of a part.

    Raises:
        CheckpointError: it is damaged, or no part.
    """
    _, metadata = read_tensors(path, remedy=AGAIN)
    try:
        card = json.loads(metadata[KEY])
        if card.pop("part_format") != FORMAT:
            raise CheckpointError(f"{path}: a part of another format, this version joins {FORMAT}; update e3d_deploy")
        return Card(**card)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a part of a model; give what `e3d train --parts` wrote") from error


def _read_bytes(path: Path, card: Card) -> bytes:
    tensors, _ = read_tensors(path, remedy=AGAIN)
    piece = tensors["bytes"].tobytes() if "bytes" in tensors else b""
    if hashlib.sha256(piece).hexdigest() != card.sha256:
        raise CheckpointError(f"{path}: is damaged, its bytes are not those that were written; {AGAIN}")
    return piece
