"""Backend that runs the ONNX graphs with OpenVINO on the CPU."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.manifest import GraphEntry
from e3d_deploy.errors import BackendUnavailable, BundleError
from e3d_deploy.inventory import cpu_flags
from e3d_deploy.openvino_library import openvino
from e3d_deploy.runtime.backends.host import HostBackend, Tensors
from e3d_deploy.runtime.backends.onnx_weights import to_memory
from e3d_deploy.runtime.backends.protocol import Drive, NodeTime

log = logging.getLogger(__name__)

PRODUCTS = ("Convolution", "MatMul", "FullyConnected")
"""Layer types of OpenVINO's CPU plugin that are convolutions and matrix products."""
POLICIES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
"""Precision policies by the data type that a layer runs in."""
POLICIES_OF_CAPABILITIES = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}
"""Precision policies by the name in OpenVINO's property `OPTIMIZATION_CAPABILITIES`."""
SNIPPETS = "SNIPPETS_MODE"
"""Setting that controls whether the CPU plugin fuses several layers into one kernel."""

CORE = openvino.Core()
"""The only OpenVINO core of this process. It is kept until the process exits: its CPU plugin must not be unloaded.

The plugin installs a stack for signal handlers in the thread that loads the plugin, and unmaps this stack when it is
unloaded. If there were several cores, and they were closed in a different order or by a different thread, a thread
could keep an unmapped stack. The next Ctrl-C would then end the process with a segmentation fault
(openvinotoolkit/openvino, pull request 11894).
"""


class OpenVINOBackend(HostBackend):
    """Backend that runs the ONNX graphs with OpenVINO, with inputs and outputs bound to the memory of states.

    A graph with a dynamic batch size is compiled once for each batch size in use, because OpenVINO's kernels for static
    shapes are faster.

    Args:
        profile: record the time of each node, which `get_profiling_info` of a request returns.

    Raises:
        BackendUnavailable: the CPU does not support the precision of the step graph.
        BundleError: OpenVINO cannot load the step graph. An error in another graph is raised when that graph first
            runs.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, profile: bool = False) -> None:
        super().__init__(bundle)
        entry = bundle.entry("step", self.name)
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            # On a CPU with bfloat16, OpenVINO would otherwise compute float32 graphs in bfloat16.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if entry.precision == "bf16":
            hinted = bfloat16_settings()
            self.settings |= hinted if entry.by == "hint" else {}  # Without a hint, the types in the graph decide.
        if threads is not None:
            self.settings["INFERENCE_NUM_THREADS"] = str(threads)
        if profile:
            self.settings["PERF_COUNT"] = "YES"
        self.requests: dict[tuple[str, int], openvino.InferRequest] = {}
        self.models: dict[str, openvino.Model] = {}
        """Models before compilation, kept to compile them for other batch sizes; they share the bundle's weights."""
        self._warn_if_slow(entry)

    def _request(self, graph: str, batch: int) -> openvino.InferRequest:
        if (graph, batch) in self.requests:
            return self.requests[graph, batch]
        file = self.bundle.path / self.bundle.entry(graph, self.name).file
        try:
            model = self.models[graph].clone() if graph in self.models else read_model(self.bundle, graph)
            if self.bundle.dynamic_batch and graph not in self.models:
                self.models[graph] = model.clone()
            model.reshape({port.any_name: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
            request = CORE.compile_model(model, "CPU", self.settings).create_infer_request()
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"{file}: OpenVINO {openvino.__version__} cannot load it ({error})") from error
        self.requests[graph, batch] = request
        return request

    def _warn_if_slow(self, entry: GraphEntry) -> None:
        """Compile the step graph; log a warning if few products run in its precision, or attention is not fused."""
        step = self._request("step", self.bundle.batch)
        layers = _layers(step)
        found = _count_products(layers)
        if entry.precision in ("bf16", "int8") and 2 * found[entry.precision] < found.total():
            log.warning(
                "openvino: only %d of %d convolutions and matrix products run in %s",
                found[entry.precision],
                found.total(),
                entry.precision,
            )
        written_for_it = entry.backends is not None and entry.precision != "int8"
        if written_for_it and SNIPPETS not in self.settings and "Softmax" in dict(layers):
            log.warning(
                "openvino: attention runs as several kernels, which is slower than the fused kernel that this graph is "
                "written for"
            )

    def tensor(self, array: NDArray[Any]) -> Any:
        return openvino.Tensor(array, shared_memory=True)

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        request = self._request(graph, batch)
        for name, tensor in (inputs | outputs).items():
            request.set_tensor(name, tensor)
        request.infer(share_outputs=True)  # Otherwise OpenVINO would copy the outputs once more.

    def free(self) -> None:
        self.requests.clear()
        self.models.clear()


def bfloat16_settings() -> dict[str, str]:
    """Return the OpenVINO settings for computing in bfloat16.

    Raises:
        BackendUnavailable: the CPU does not support bfloat16.
    """
    types = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in types:
        has = ", ".join(sorted(POLICIES_OF_CAPABILITIES[one] for one in types if one in POLICIES_OF_CAPABILITIES))
        raise BackendUnavailable(
            f"openvino: this CPU does not support bfloat16, only {has}; export the model again with one of these as "
            "--precision, or run this bundle on a CPU with bfloat16"
        )
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    flags = cpu_flags()
    if flags and "amx_bf16" not in flags:
        # Without AMX, the fused attention kernel is slower in bfloat16 than three separate ones (docs/graphs.md).
        settings[SNIPPETS] = "DISABLE"
    return settings


def count_products(backend: OpenVINOBackend) -> dict[str, int]:
    """Return how many convolutions and matrix products of the compiled step run in each precision."""
    return dict(_count_products(_layers(backend.requests["step", backend.bundle.batch])))


def _count_products(layers: Iterable[tuple[str, str]]) -> Counter[str]:
    return Counter(POLICIES.get(kind, kind) for layer, kind in layers if layer in PRODUCTS)


def _layers(request: openvino.InferRequest) -> list[tuple[str, str]]:
    """Return the type of each layer of a compiled graph, and the data type that it runs in."""
    nodes = [node.get_rt_info() for node in request.get_compiled_model().get_runtime_model().get_ops()]
    return [(str(node["layerType"].value), str(node["runtimePrecision"].value)) for node in nodes]


def read_model(bundle: Bundle, graph: str) -> openvino.Model:
    """Return a graph of a bundle as a model that shares the memory of the bundle's weights.

    The bundle must be kept as long as the model. OpenVINO itself copies weights that it reads from memory, once for
    each graph, so this function replaces the copies by constants over the shared memory.

    Raises:
        RuntimeError: OpenVINO cannot read the graph.
        ValueError: the graph is damaged, or reads weights from a file that is not one of the bundle's.
    """
    weights = bundle.weights
    content, places = to_memory(bundle.onnx(graph, OpenVINOBackend.name), weights)
    model = CORE.read_model(content)
    for node in model.get_ops():
        place = places.get(node.get_friendly_name()) if node.get_type_name() == "Constant" else None
        if place is None:
            continue
        tensor = openvino.Tensor(place.within(weights), node.get_output_shape(0), node.get_element_type())
        if tensor.byte_size != place.length:
            raise ValueError(f"{node.get_friendly_name()}: the size of its shape differs from the size of its data")
        shared = openvino.op.Constant(tensor, shared_memory=True)
        shared.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(shared.output(0))
    return model


def profile(bundle: Bundle, drive: Drive, *, threads: int | None, steps: int) -> tuple[list[NodeTime], float]:
    """Time the nodes of a step with OpenVINO's performance counters; see `protocol.Profiler`."""
    found: list[NodeTime] = []
    with OpenVINOBackend(bundle, threads=threads, profile=True) as backend:

        def after() -> None:
            for node in backend.requests["step", bundle.batch].get_profiling_info():
                if node.real_time:
                    found.append(NodeTime(node.node_name, node.node_type, 1000 * node.real_time.total_seconds()))

        return found, drive(backend, after=after)
