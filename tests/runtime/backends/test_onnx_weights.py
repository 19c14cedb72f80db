"""Locations of weights in ONNX graphs, parsed and rewritten without the onnx package."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.emulated import with_weights
from e3d_deploy.runtime.backends.onnx_weights import IN_MEMORY, Place, check_places, to_memory
from e3d_deploy.tensors import Content

FILE = "w.safetensors"


def external(name: str, **place: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 300])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(*tensors: TensorProto) -> ModelProto:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="n" * 200)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 300])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 300])
    return helper.make_model(helper.make_graph(nodes, "g", [value], [output], list(tensors)), ir_version=10)


@pytest.fixture
def files() -> dict[str, Content]:
    return {FILE: np.arange(6000, dtype=np.uint8)}


def test_only_the_locations_of_the_weights_change_in_a_graph(files: dict[str, Content]) -> None:
    inline = helper.make_tensor("inline", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    model = graph(inline, external("w", location=FILE, offset=64, length=2400, checksum="abc"))
    content, places = to_memory(model.SerializeToString(), files)
    assert places == {"w": Place(FILE, 64, 2400)}
    assert places["w"].within(files).tobytes() == files[FILE][64:2464].tobytes()
    found = onnx.load_from_string(content)
    entries = {entry.key: entry.value for entry in found.graph.initializer[1].external_data}
    assert entries == {"location": IN_MEMORY, "offset": str(files[FILE].ctypes.data + 64), "length": "2400"}
    del found.graph.initializer[1].external_data[:]
    del model.graph.initializer[1].external_data[:]
    assert found == model


def test_all_weights_of_every_graph_of_a_bundle_are_found(any_batch: Path) -> None:
    bundle = Bundle.open(any_batch)
    for name in bundle.graphs:
        file = bundle.entry(name).file
        content, places = to_memory(bundle.onnx(name), bundle.weights)
        whole = {one.name: one for one in with_weights(bundle, file).graph.initializer}
        plain = onnx.load(any_batch / file)
        assert places
        for tensor in plain.graph.initializer:
            assert whole[tensor.name].raw_data == tensor.raw_data
            if tensor.name in places:
                assert places[tensor.name].within(bundle.weights).tobytes() == tensor.raw_data
        moved = onnx.load_from_string(content)
        assert list(moved.graph.node) == list(plain.graph.node)
        assert [one.name for one in moved.graph.initializer] == [one.name for one in plain.graph.initializer]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "../w", "offset": 0, "length": 8}, r"a weight is in '\.\./w', which is not one of the bundle's"),
        ({"location": FILE, "offset": -8, "length": 8}, "a weight is outside of w.safetensors"),
        ({"location": FILE, "offset": 8, "length": -8}, "a weight is outside of w.safetensors"),
        ({"location": FILE, "offset": 5996, "length": 8}, "a weight is outside of w.safetensors"),
        ({"location": FILE, "offset": "0x10", "length": 8}, "invalid literal"),
        ({"location": FILE, "offset": 0}, "a weight has no length"),
        ({"offset": 0, "length": 8}, "a weight has no location"),
    ],
    ids=str,
)
def test_a_weight_outside_of_the_files_is_refused(
    place: dict[str, object], message: str, files: dict[str, Content]
) -> None:
    with pytest.raises(ValueError, match=message):
        check_places(graph(external("w", **place)).SerializeToString(), files)


def test_a_truncated_graph_is_refused(files: dict[str, Content]) -> None:
    """A prefix that ends between two fields is a valid message; any other prefix raises ValueError, no other error."""
    content = graph(external("w", location=FILE, offset=0, length=2400)).SerializeToString()
    refused = 0
    for length in range(len(content)):
        try:
            check_places(content[:length], files)
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x3b", "a field has the unknown wire type 3"),
        (b"\x3a\xff", "a number is truncated"),
        (b"\x3a\x05ab", "a field is truncated"),
        (b"\x3a" + b"\xff" * 10 + b"\x01", "a number is too long"),
        (b"\x09\x00", "a field is truncated"),
    ],
)
def test_an_invalid_protobuf_is_refused(content: bytes, message: str, files: dict[str, Content]) -> None:
    with pytest.raises(ValueError, match=message):
        check_places(content, files)


def test_any_other_damage_is_a_value_error_or_stays_within_the_files(files: dict[str, Content]) -> None:
    content = bytearray(graph(external("w", location=FILE, offset=64, length=2400)).SerializeToString())
    random = np.random.default_rng(0)
    for position in random.integers(0, len(content), 1000):
        damaged = content.copy()
        damaged[position] ^= 1 << int(random.integers(8))
        try:
            _, places = to_memory(bytes(damaged), files)
        except ValueError:
            continue
        for place in places.values():
            assert len(place.within(files)) == place.length
