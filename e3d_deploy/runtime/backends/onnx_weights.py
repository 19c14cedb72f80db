"""Locations of the weights that an ONNX graph reads from other files, parsed and rewritten without the onnx package.

Only these fields of onnx.proto are needed: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.name = 8,
TensorProto.external_data = 13, StringStringEntryProto.key = 1 and .value = 2. Subgraphs inside nodes are not rewritten;
the graphs of bundles have none.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from e3d_deploy.tensors import Content

GRAPH, INITIALIZER, NAME, EXTERNAL_DATA, KEY, VALUE = 7, 5, 8, 13, 1, 2
WITH_LENGTH = 2
"""Wire type of a length-delimited field, stored in the low three bits of the key of the field."""
IN_MEMORY = "*/_ORT_MEM_ADDR_/*"
"""Location with which ONNX Runtime and OpenVINO read the offset as an address in the memory of this process."""


@dataclass(frozen=True)
class Place:
    """Location of a weight in a file."""

    file: str
    offset: int
    """Position of the first byte of the weight (bytes)."""
    length: int
    """Size of the weight (bytes)."""

    def within(self, files: Mapping[str, Content]) -> Content:
        """Return the bytes of the weight."""
        return files[self.file][self.offset : self.offset + self.length]


def check_places(model: bytes, files: Mapping[str, Content]) -> None:
    """Check that all weights of a graph are inside the graph or in one of these files.

    Raises:
        ValueError: a weight is in another file or past the end of a file, or the graph is damaged.
    """
    to_memory(model, files)


def to_memory(model: bytes, files: Mapping[str, Content]) -> tuple[bytes, dict[str, Place]]:
    """Rewrite a graph so that it reads its weights from memory instead of files.

    Args:
        model: serialised ModelProto.
        files: contents of the weight files by name. They must stay at the same address until the library has read the
            returned graph.

    Returns:
        The rewritten graph, and the location in `files` of each weight by name.

    Raises:
        ValueError: a weight is in another file or past the end of a file, or the graph is damaged.
    """
    places: dict[str, Place] = {}

    def moved(tensor: memoryview) -> bytes | memoryview:
        fields = list(_fields(tensor))
        entries = dict(_entry(content) for number, _, content in fields if number == EXTERNAL_DATA)
        if not entries:
            return tensor
        place = place_of(entries, files)
        places[_name(tensor)] = place
        address = place.within(files).ctypes.data
        new = {"location": IN_MEMORY, "offset": str(address), "length": str(place.length)}
        kept = [field for number, field, _ in fields if number != EXTERNAL_DATA]
        return b"".join([*kept, *(_external(key, value) for key, value in new.items())])

    def graph(content: memoryview) -> bytes:
        return _changed(content, INITIALIZER, moved)

    return _changed(memoryview(model), GRAPH, graph), places


def place_of(entries: Mapping[str, str], files: Mapping[str, Content]) -> Place:
    """Return the location that the `external_data` entries of a weight describe.

    Raises:
        ValueError: an entry is missing or not a number; or `files` does not contain the file; or the location is
            outside the file.
    """
    try:
        place = Place(entries["location"], int(entries.get("offset", "0")), int(entries["length"]))
    except KeyError as error:
        raise ValueError(f"a weight has no {error.args[0]}") from error
    if place.file not in files:
        raise ValueError(f"a weight is in {place.file!r}, which is not one of the bundle's files")
    if place.offset < 0 or place.length < 0 or place.offset + place.length > len(files[place.file]):
        raise ValueError(f"a weight is outside of {place.file}")
    return place


def _changed(message: memoryview, number: int, change: Callable[[memoryview], bytes | memoryview]) -> bytes:
    """Return a message in which `change` is applied to the content of every field with the given number."""
    parts: list[bytes | memoryview] = []
    for found, field, content in _fields(message):
        parts.append(_field(number, change(content)) if found == number else field)
    return b"".join(parts)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield the number, all bytes, and the content of each field of a message.

    The content is empty unless the field is length-delimited.
    """
    position = 0
    while position < len(message):
        start = position
        key, position = _varint(message, position)
        begin = end = position
        match key & 7:
            case 0:
                _, end = _varint(message, position)
                begin = end
            case 1:
                begin = end = position + 8
            case 2:
                length, begin = _varint(message, position)
                end = begin + length
            case 5:
                begin = end = position + 4
            case wire:
                raise ValueError(f"a field has the unknown wire type {wire}")
        if end > len(message):
            raise ValueError("a field is truncated")
        yield key >> 3, message[start:end], message[begin:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the varint at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("a number is truncated")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _entry(message: memoryview) -> tuple[str, str]:
    texts = {number: str(content, "utf-8") for number, _, content in _fields(message)}
    return texts.get(KEY, ""), texts.get(VALUE, "")


def _name(tensor: memoryview) -> str:
    return next((str(content, "utf-8") for number, _, content in _fields(tensor) if number == NAME), "")


def _external(key: str, value: str) -> bytes:
    return _field(EXTERNAL_DATA, _field(KEY, key.encode()) + _field(VALUE, value.encode()))


def _field(number: int, content: bytes | memoryview) -> bytes:
    return b"".join([_encoded(number << 3 | WITH_LENGTH), _encoded(len(content)), content])


def _encoded(value: int) -> bytes:
    """Return a number encoded as a varint."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
