"""Headers of .safetensors files, and their tensors read with NumPy alone, as a device has no more.

A file is the length of its header in 8 bytes, the header in JSON, and the bytes of all tensors.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, CheckpointMissing, ConfigError

KEY = "e3d_deploy"
"""Key of a model's only metadata entry; safetensors would write several in any order, and the bytes would differ."""
FORMAT = 1
"""Form of that entry."""
Content = NDArray[np.uint8]
"""Bytes of a file."""
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions of `tensors_of` for a damaged file."""
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}


def read_tensors(
    path: Path, *, remedy: str = "give a model made by `e3d train`"
) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    """The tensors of a file by name, which are read when they are used, and its metadata.

    Args:
        remedy: ends the error.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    try:
        read_header(path)  # an empty file cannot be mapped
        return tensors_of(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path}: no such file; {remedy}") from error
    except (IsADirectoryError, *DAMAGED) as error:
        found = "is a folder" if path.is_dir() else f"not a safetensors file ({without_number(error)})"
        raise CheckpointError(f"{path}: {found}; {remedy}") from error


def without_number(error: Exception) -> str:
    """Return what an error says, without the number that the system gives it and the name of the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r" ?\(os error \d+\)", "", text)


def tensors_of(content: Content) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    """Return the tensors in the content of a file by name, over the same memory, and its metadata.

    Raises:
        one of `DAMAGED`: the file is damaged.
    """
    header, start = header_of(content)
    metadata = header.pop("__metadata__", {})
    return {name: _tensor(content, start, entry) for name, entry in header.items()}, metadata


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and where the bytes of its tensors begin.

    Each tensor has an entry with its `dtype`, `shape` and `data_offsets`, which count from there.

    Raises:
        OSError: the file cannot be read.
        ValueError: its header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file.read(8), size)
        header: dict[str, Any] = json.loads(file.read(length))
    return header, 8 + length


def is_foreign(path: Path) -> bool:
    """Return True for a .safetensors file that another program wrote, which has to be imported."""
    try:
        header, _ = read_header(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and KEY not in (header.get("__metadata__") or {})


def header_of(content: Content) -> tuple[dict[str, Any], int]:
    """Return the header in the content of a file, as `read_header` does.

    Raises:
        ValueError: it is damaged.
    """
    length = _header_length(content[:8].tobytes(), len(content))
    header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
    return header, 8 + length


def _header_length(start: bytes, size: int) -> int:
    """Return the length that a file of `size` begins with (bytes)."""
    length = int.from_bytes(start, "little")
    if not 2 <= length <= size - 8:
        raise ValueError("its header is longer than the file")
    return length


def entries_of(path: str | Path, metadata: object) -> dict[str, Any]:
    """Return the entries in the metadata of a model file: `format`, `config` and, where there is one, `card`.

    Raises:
        CheckpointError: not a model file of ours, or one that this version cannot read.
    """
    if not isinstance(metadata, Mapping) or KEY not in metadata:
        raise CheckpointError(f"{path}: not made by e3d_deploy; `e3d import` makes a model of others' files")
    try:
        entries: dict[str, Any] = json.loads(metadata[KEY])
        if entries["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: format {entries['format']!r}, this version reads {FORMAT}; update e3d_deploy"
            )
        ModelConfig.from_dict(entries["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be read ({error}); save or fetch it again") from error
    return entries


def header_bytes(header: str) -> bytes:
    """Return a header in JSON as it stands at the begin of a file, which the bytes of the tensors follow.

    The text is taken as it is: its length moves the tensors, and graphs hold their places.
    """
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensor(content: Content, start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    shape, kind = tuple(entry["shape"]), np.dtype(KINDS[entry["dtype"]])
    if end - begin != int(np.prod(shape)) * kind.itemsize or begin < 0:
        raise ValueError("a shape does not fit its bytes")
    if start + end > len(content):
        raise ValueError("a tensor lies behind the end of the file")
    tensor: NDArray[Any] = content[start + begin : start + end].view(kind).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (tensor.astype("<u4") << 16).view("<f4")
    return tensor
