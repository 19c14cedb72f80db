"""Lookup of the network layer that a graph node belongs to, for messages."""

import re
from collections import defaultdict, deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

FAR = 12
"""Maximum distance at which a node is reported as near a layer (nodes); beyond it, "near" would be meaningless."""


def locate(graph_file: Path, words: str) -> str:
    """Describe the nodes that a message of TensorRT names, such as `; node … is a Conv of cells.2.memory_conv`.

    Returns:
        At most three descriptions; empty if the message names no node, the graph cannot be read, or the package onnx
        is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        return ""
    try:
        graph = onnx.load(graph_file, load_external_data=False).graph
    except (OSError, DecodeError):
        return ""
    # Node names contain no spaces or quotes; messages write them as 'node', (node), node: and the like.
    for character in "'\"()[]:;,{}":
        words = words.replace(character, " ")
    named = set(words.split()) | {word.rstrip(".") for word in words.split()}
    found = [node for node in graph.node if node.name in named]
    return "".join(f"; node {node.name} is a {node.op_type}{_place(graph, node)}" for node in found[:3])


def _place(graph: "GraphProto", node: "NodeProto") -> str:
    layer, distance = layer_of(graph, node)
    if layer is None:
        return ""
    return f" of {layer}" if distance == 0 else f" near {layer}"


def layer_of(graph: "GraphProto", node: "NodeProto") -> tuple[str | None, int]:
    """Return the module that a node was exported from, such as `cells.2.memory_conv`, or the nearest known module.

    The module of a node is known from the name of the node or of a weight that it reads.

    Returns:
        The path of the module in the model, or None if no module is known within `FAR` nodes; and the distance from
        the node to the nearest node of the module (nodes).
    """
    weights = {tensor.name for tensor in graph.initializer}
    neighbours = defaultdict(list)  # nodes by the values that they read or write
    for index, other in enumerate(graph.node):
        for name in {*other.input, *other.output} - weights - {""}:
            neighbours[name].append(index)
    start = next(index for index, other in enumerate(graph.node) if other.name == node.name)
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        index, distance = queue.popleft()
        here = graph.node[index]
        if module := _module(here):
            return module, distance
        if distance == FAR:
            continue
        for name in (*here.input, *here.output):
            for neighbour in neighbours[name]:
                if neighbour not in seen:
                    seen.add(neighbour)
                    queue.append((neighbour, distance + 1))
    return None, FAR


def _module(node: "NodeProto") -> str | None:
    # to_onnx.py names nodes MODULE/node_…, and compose.py adds a prefix for the step.
    if named := re.search(r"(?:^|/)([a-z_]+(?:\.\w+)*)/node_", node.name):
        return str(named[1])
    for name in node.input:  # a weight in a low type is cells.2.merge.weight/fp16
        module, _, kind = str(name).partition("/")[0].rpartition(".")
        if module and kind in ("weight", "bias"):
            return module
    return None
