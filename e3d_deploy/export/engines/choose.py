"""Defaults of a build, and estimates of the time of a build and of the size of a plan."""

from collections.abc import Sequence
from typing import get_args

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.inventory import has_library, has_nvidia_driver
from e3d_deploy.progress import duration
from e3d_deploy.tensorrt_library import MODULES, Target, remedy

STEP_NODES, STEP_SECONDS, GROWTH = 176, 0.8, 1.27
"""Measured build of a float32 step with two layers of 40 channels: its number of nodes, its time (s), and the exponent
with which the time grows with the number of nodes."""
WEIGHTS_SHARE, NODE_BYTES = 1.3, 6500
"""Coefficients of the size of a plan with one profile: bytes per byte of weights, and bytes per node. The estimates are
within 40 % of the sizes in docs/engines.md."""


def default_target() -> Target:
    """Return the TensorRT library that is installed on this machine and can build here.

    Raises:
        ConfigError: two libraries can build here, so the user has to choose one.
        BackendUnavailable: no library can build here.
    """
    found = [target for target in get_args(Target) if has_library(MODULES[target][0])]
    if "tensorrt" in found and not has_nvidia_driver():
        found.remove("tensorrt")  # TensorRT builds only on a GPU
    if len(found) > 1:
        raise ConfigError(f"--target: {' and '.join(found)} are both installed here; choose one with --target")
    if not found:
        raise BackendUnavailable(f"--target: no library here can build engines; {remedy('tensorrt-rtx')}")
    target: Target = found[0]
    return target


def check_graphs(bundle: Bundle, graphs: Sequence[str]) -> tuple[str, ...]:
    """Return the requested graphs, or all graphs of the bundle if `graphs` is empty.

    Raises:
        ConfigError: the bundle lacks a requested graph.
    """
    for graph in graphs:
        if graph not in bundle.graphs:
            raise ConfigError(f"graphs: got {graph!r}, expected some of {', '.join(bundle.graphs)}")
    return tuple(graphs) or tuple(bundle.graphs)


def cost(bundle: Bundle, graphs: Sequence[str], target: Target) -> str:
    """Describe how long the builds of graphs take, and how large their plans are together."""
    seconds, nbytes = (sum(one) for one in zip(*(estimate(bundle, graph, target) for graph in graphs), strict=True))
    return f"{', '.join(graphs)}: about {duration(seconds)} on an idle machine, and {nbytes / 1e6:.0f} MB"


def estimate(bundle: Bundle, graph: str, target: Target) -> tuple[float, float]:
    """Estimate the time of the build of a graph on two idle cores (s), and the size of its plan (bytes)."""
    nodes = bundle.entry(graph, target).nodes
    weights = _weights_bytes(bundle, graph, target)
    return STEP_SECONDS * (nodes / STEP_NODES) ** GROWTH, WEIGHTS_SHARE * weights + NODE_BYTES * nodes


def _weights_bytes(bundle: Bundle, graph: str, target: Target) -> int:
    """Return the size of the weights that a graph reads (bytes); the weight files may contain further weights."""
    import onnx

    weights = onnx.load_from_string(bundle.onnx(graph, target)).graph.initializer
    places = (place for weight in weights for place in weight.external_data)
    return sum(int(place.value) for place in places if place.key == "length")
