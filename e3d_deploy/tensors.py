"""Reader of .safetensors files that needs only NumPy, because devices lack PyTorch.

A file consists of the length of its header (8 bytes), the header (JSON), and the bytes of all tensors.
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
"""Key of the only metadata entry of a model file; safetensors would write several entries in random order."""
FORMAT = 1
"""Format version of the metadata entry."""
Content = NDArray[np.uint8]
"""Bytes of a file."""
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions that `tensors_of` raises for a damaged file."""
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}


def read_tensors(
    path: Path, *, remedy: str = "give a model made by `e3d train`"
) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    """Return the tensors of a file by name, mapped into memory, and the metadata of the file.

    Args:
        remedy: last part of the error message.

    Raises:
        CheckpointError: The file does not exist, is not a safetensors file, or is damaged.
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
    """Return the message of an error without the error number and the file name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r" ?\(os error \d+\)", "", text)


def tensors_of(content: Content) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    """Return the tensors in the content of a file by name, and the metadata. The tensors share the memory of `content`.

    Raises:
        One of `DAMAGED`: The content is damaged.
    """
    header, start = header_of(content)
    metadata = header.pop("__metadata__", {})
    return {name: _tensor(content, start, entry) for name, entry in header.items()}, metadata


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and the offset of the tensor bytes.

    The header has an entry per tensor with `dtype`, `shape` and `data_offsets`, which are relative to this offset.

    Raises:
        OSError: The file cannot be read.
        ValueError: The header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file.read(8), size)
        header: dict[str, Any] = json.loads(file.read(length))
    return header, 8 + length


def is_foreign(path: Path) -> bool:
    """Return True for a .safetensors file of another program, which must be imported with `e3d import`."""
    try:
        header, _ = read_header(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and KEY not in (header.get("__metadata__") or {})


def header_of(content: Content) -> tuple[dict[str, Any], int]:
    """Return the header in the content of a file, like `read_header`.

    Raises:
        ValueError: The header is damaged.
    """
    length = _header_length(content[:8].tobytes(), len(content))
    header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
    return header, 8 + length


def _header_length(start: bytes, size: int) -> int:
    """Return the length of the header, which the first 8 bytes of a file contain (bytes)."""
    length = int.from_bytes(start, "little")
    if not 2 <= length <= size - 8:
        raise ValueError("the length of its header is impossible")
    return length


def entries_of(path: str | Path, metadata: object) -> dict[str, Any]:
    """Return the entries in the metadata of a model file: `format`, `config` and, if the model has one, `card`.

    Raises:
        CheckpointError: The file is not a model file, or this version cannot read it.
    """
    if not isinstance(metadata, Mapping) or KEY not in metadata:
        raise CheckpointError(f"{path}: not made by e3d_deploy; convert files of other programs with `e3d import`")
    try:
        entries: dict[str, Any] = json.loads(metadata[KEY])
        if entries["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: has format {entries['format']!r}, but this version reads format {FORMAT}; update e3d_deploy"
            )
        ModelConfig.from_dict(entries["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be read ({error}); save or fetch it again") from error
    return entries


def header_bytes(header: str) -> bytes:
    """Return the first bytes of a file: the length of the header, and the header padded to 8 bytes.

    The JSON text is not reformatted, because its length sets the offsets of the tensors, which graphs store.
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
        raise ValueError("a tensor ends beyond the end of the file")
    tensor: NDArray[Any] = content[start + begin : start + end].view(kind).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (tensor.astype("<u4") << 16).view("<f4")
    return tensor
