"""Choices of a build that the user leaves open, and what it will cost."""

from collections.abc import Sequence
from typing import get_args

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.inventory import has_library, has_nvidia_driver
from e3d_deploy.progress import duration
from e3d_deploy.tensorrt_library import MODULES, Target, remedy

STEP_NODES, STEP_SECONDS, GROWTH = 176, 0.8, 1.27
"""Build of a float32 step of 2×40 (nodes, s), and the power of the number of nodes that the time grows by."""
WEIGHTS_SHARE, NODE_BYTES = 1.3, 6500
"""Size of a plan with one profile: bytes per byte of weights, and per node; within 40 % of those of docs/engines.md."""


def default_target() -> Target:
    """Return the TensorRT library of this machine.

    Raises:
        ConfigError: there are two, so the user has to say which.
        BackendUnavailable: there is none.
    """
    found = [target for target in get_args(Target) if has_library(MODULES[target][0])]
    if "tensorrt" in found and not has_nvidia_driver():
        found.remove("tensorrt")  # it builds on the GPU alone
    if len(found) > 1:
        raise ConfigError(f"--target: {' and '.join(found)} are both installed here; say which with --target")
    if not found:
        raise BackendUnavailable(f"--target: no library that builds engines here; {remedy('tensorrt-rtx')}")
    target: Target = found[0]
    return target


def check_graphs(bundle: Bundle, graphs: Sequence[str]) -> tuple[str, ...]:
    """Return the graphs that were asked for; all of a bundle if none were.

    Raises:
        ConfigError: the bundle does not have one.
    """
    for graph in graphs:
        if graph not in bundle.graphs:
            raise ConfigError(f"graphs: got {graph!r}, expected some of {', '.join(bundle.graphs)}")
    return tuple(graphs) or tuple(bundle.graphs)


def cost(bundle: Bundle, graphs: Sequence[str], target: Target) -> str:
    """Return in words about how long the builds of graphs take, and how large their plans are together."""
    seconds, nbytes = (sum(one) for one in zip(*(estimate(bundle, graph, target) for graph in graphs), strict=True))
    return f"{', '.join(graphs)}: about {duration(seconds)} on an idle machine, and {nbytes / 1e6:.0f} MB"


def estimate(bundle: Bundle, graph: str, target: Target) -> tuple[float, float]:
    """Return about how long the build of a graph takes (s, on 2 idle cores) and how large its plan is (bytes)."""
    nodes = bundle.entry(graph, target).nodes
    weights = _weights_bytes(bundle, graph, target)
    return STEP_SECONDS * (nodes / STEP_NODES) ** GROWTH, WEIGHTS_SHARE * weights + NODE_BYTES * nodes


def _weights_bytes(bundle: Bundle, graph: str, target: Target) -> int:
    """Return the size of the weights that a graph reads; its files hold others too, such as those in float32."""
    import onnx

    weights = onnx.load_from_string(bundle.onnx(graph, target)).graph.initializer
    places = (place for weight in weights for place in weight.external_data)
    return sum(int(place.value) for place in places if place.key == "length")
