"""Time of a step per node and per node type, compared with the limits of the machine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.json_values import json_object
from e3d_deploy.libraries import pip_install
from e3d_deploy.measure.environment import environment
from e3d_deploy.measure.profilers import trace
from e3d_deploy.measure.roofline import Roofline, measure
from e3d_deploy.runtime.arguments import check_count
from e3d_deploy.runtime.backends.protocol import NodeTime
from e3d_deploy.runtime.backends.registry import check_threads
from e3d_deploy.runtime.backends.specs import RECOMMENDED, find

if TYPE_CHECKING:
    from e3d_deploy.export.graph.statistics import NodeCost

SCHEMA = 1
STEPS = 20
KINDS = {
    "FusedConv": "Conv",
    "Convolution": "Conv",
    "FusedMatMul": "MatMul",
    "FullyConnected": "MatMul",
    "FusedGemm": "Gemm",
}
"""ONNX types of convolutions and matrix products, by the different names that libraries give to these types."""
BLOCKED = "_nchwc"
"""Suffix that ONNX Runtime adds to the output names of convolutions that it replaced with its own nodes."""


@dataclass(frozen=True)
class TimedNode:
    """Node as a library timed it, and the cost of the corresponding graph node."""

    timed: NodeTime
    cost: "NodeCost | None"

    @property
    def name(self) -> str:
        """Name of the graph node; if the graph node is unknown, the name that the library reports."""
        return self.cost.name if self.cost else self.timed.name


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """Share of one node, or of all nodes of one type, in the time of a step."""

    name: str | None
    """Name of the node; None for a type."""
    kind: str
    """Type of the node, as the library names it."""
    ms: float
    """Mean time per step (ms)."""
    calls: float
    """Mean number of calls per step."""
    share: float
    """Share of the time of all nodes."""
    gflops: float | None
    """Speed (10⁹ FLOP/s); None if the FLOP are unknown."""
    roofline_share: float | None
    """Minimum time for the FLOP and bytes, divided by the measured time; None if either is unknown."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without `name` for a type."""
        found = json_object(self)
        if self.name is None:
            del found["name"]
        return found


@dataclass(frozen=True, kw_only=True)
class StepRoofline:
    """Limits of the machine, and the minimum time of a step within these limits."""

    matmul_gflops: float
    """Speed of the fastest matrix product (10⁹ FLOP/s)."""
    copy_gb_per_s: float
    """Speed of the fastest copy, bytes read plus bytes written (GB/s)."""
    flop: int
    least_bytes: int
    """Minimum number of bytes moved: inputs, outputs and weights. Fusing nodes does not avoid these transfers."""
    least_ms: float
    share: float
    """Minimum time divided by the measured time."""


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """Times of the nodes of a step; docs/benchmark.md describes the JSON."""

    backend: str
    bundle: Mapping[str, Any]
    """Path, digest and batch size of the bundle."""
    steps: int
    """Number of steps timed."""
    step_ms: float
    nodes_ms: float
    """Time inside nodes per step (ms)."""
    nodes: tuple[NodeShare, ...]
    """Times of the nodes, longest first."""
    types: tuple[NodeShare, ...]
    """Times of the node types, longest first."""
    roofline: StepRoofline | None
    roofline_missing: str | None
    """Reason why there is no roofline; None if there is one."""
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values of schema 1."""
        return json_object(
            {
                "schema": SCHEMA,
                "what": f"one step with a full history, mean of {self.steps} steps; shares are shares of the node time",
                **vars(self),
                "nodes": [node.to_json() for node in self.nodes],
                "types": [one.to_json() for one in self.types],
            }
        )


def profile(
    bundle: Bundle | str | Path,
    backend: str = RECOMMENDED,
    *,
    threads: int | None = None,
    steps: int = STEPS,
    roofline: bool = True,
) -> ProfileResult:
    """Time each node of the step graph.

    Args:
        bundle: bundle, opened or as the path of its folder.
        backend: name of a backend that reports the times of nodes.
        steps: number of steps to time, after the steps that fill the history.
        roofline: also measure the limits of the machine, which takes a few seconds.

    Raises:
        BackendUnavailable: The library of the backend is not installed, or does not report times of nodes.
        BundleError: The bundle is damaged, or does not exist.
        ConfigError: The backend is unknown.
    """
    check_count("steps", steps)
    bundle, threads = Bundle.of(bundle), check_threads(threads)
    traced = trace(bundle, backend, threads=threads, steps=steps)
    costs, missing = _costs(bundle, backend) if roofline else ([], "not requested")
    limits = measure(threads) if costs else None
    timed_nodes = [TimedNode(timed, cost) for timed, cost in match(traced.nodes, costs)]
    total = sum(one.timed.ms for one in timed_nodes)
    kinds: dict[str, list[TimedNode]] = {}
    for one in timed_nodes:
        kinds.setdefault(one.timed.kind, []).append(one)
    types = [_share(None, kind, members, total, limits) for kind, members in kinds.items()]
    return ProfileResult(
        backend=backend,
        bundle={"path": bundle.path.name, "digest": bundle.digest, "batch": bundle.batch},
        steps=steps,
        step_ms=traced.step_ms,
        nodes_ms=total,
        nodes=tuple(_share(one.name, one.timed.kind, [one], total, limits) for one in timed_nodes),
        types=tuple(sorted(types, key=lambda one: -one.ms)),
        roofline=_step_roofline(bundle, backend, traced.step_ms, limits) if limits else None,
        roofline_missing=missing,
        environment=environment(threads),
    )


def match(nodes: Iterable[NodeTime], costs: Iterable["NodeCost"]) -> list[tuple[NodeTime, "NodeCost | None"]]:
    """Pair each timed node with the cost of its graph node; None if no single graph node corresponds to it."""
    by_name: dict[str, NodeCost] = {}
    for cost in costs:
        by_name |= dict.fromkeys((cost.name, *cost.outputs), cost)
    result = []
    for timed in nodes:
        name = timed.name.removesuffix(BLOCKED)
        # Libraries append the names of fusions, as in NODE/MatmulTransposeFusion/.
        while name not in by_name and "/" in name:
            name = name.rstrip("/").rpartition("/")[0]
        found = by_name.get(name)
        same = found is not None and found.kind == KINDS.get(timed.kind, timed.kind)
        result.append((timed, found if same else None))
    return result


def _share(name: str | None, kind: str, nodes: list[TimedNode], total: float, limits: Roofline | None) -> NodeShare:
    """Sum the times of nodes; the roofline share covers only the nodes with a known cost."""
    ms = sum(node.timed.ms for node in nodes)
    known = [(node.timed.ms, node.cost) for node in nodes if node.cost is not None and node.cost.bytes_moved]
    known_ms = sum(time for time, _ in known)
    least = sum(limits.least_ms(cost.flop, cost.bytes_moved) for _, cost in known) if limits else 0.0
    flop = sum(cost.flop for _, cost in known)
    return NodeShare(
        name=name,
        kind=kind,
        ms=ms,
        calls=sum(node.timed.calls for node in nodes),
        share=ms / total if total else 0.0,
        gflops=flop / known_ms / 1e6 if flop else None,
        roofline_share=least / known_ms if limits and known_ms else None,
    )


def _step_roofline(bundle: Bundle, backend: str, step_ms: float, limits: Roofline) -> StepRoofline:
    from e3d_deploy.export.graph.statistics import statistics

    counted = statistics(bundle.onnx("step", backend), bundle.entry("step", backend))
    least_bytes = counted.input_bytes + counted.output_bytes + counted.weight_bytes
    least_ms = limits.least_ms(counted.flop, least_bytes)
    return StepRoofline(
        matmul_gflops=limits.gflops,
        copy_gb_per_s=limits.gigabytes_per_second,
        flop=counted.flop,
        least_bytes=least_bytes,
        least_ms=least_ms,
        share=least_ms / step_ms,
    )


def _costs(bundle: Bundle, backend: str) -> tuple[list["NodeCost"], str | None]:
    """Return the costs of the nodes, or no costs and the reason why they are unknown."""
    if not find(backend).runs_graphs:
        return [], "PyTorch runs its own operators, which are not the nodes of the step graph"
    try:
        from e3d_deploy.export.graph.statistics import node_costs
    except ModuleNotFoundError as error:
        return [], f"{error.name} is not installed; {pip_install('train')}"
    return node_costs(bundle.onnx("step", backend), bundle.entry("step", backend)), None
