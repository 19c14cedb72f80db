"""The graphs on OpenVINO, on the CPU."""

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
"""Layers of OpenVINO's CPU plugin that multiply, by their names in its runtime model."""
POLICIES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
"""Policies by the types that these layers run in."""
POLICIES_OF_CAPABILITIES = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}
"""Policies by what the library says that the processor can do."""
SNIPPETS = "SNIPPETS_MODE"
"""Setting that keeps the CPU plugin from fusing several layers into one kernel."""

CORE = openvino.Core()
"""The one core of this process, for its CPU plugin must not be unloaded.

The plugin gives the thread that loads it a stack for signal handlers, and unmaps that when it is unloaded. Of several
cores, closed in another order or by another thread, one leaves a thread with a stack that is gone, and the next Ctrl-C
ends the process by a segmentation fault (openvinotoolkit/openvino, pull request 11894).
"""


class OpenVINOBackend(HostBackend):
    """Runs the graphs with inputs and outputs in the memory of states.

    What takes any number of streams is compiled once for each number that comes: OpenVINO's kernels for shapes
    that it knows are the faster ones.

    Args:
        profile: count the time of each node, for `get_profiling_info` of a request.

    Raises:
        BackendUnavailable: the processor lacks the type of the step graph.
        BundleError: OpenVINO cannot load the step graph; of the others, when they are first run.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, profile: bool = False) -> None:
        super().__init__(bundle)
        entry = bundle.entry("step", self.name)
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            # On a processor with bfloat16 it takes that for float32 unless told not to.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if entry.precision == "bf16":
            hinted = bfloat16_settings()
            self.settings |= hinted if entry.by == "hint" else {}  # else its types say what stays in float32
        if threads is not None:
            self.settings["INFERENCE_NUM_THREADS"] = str(threads)
        if profile:
            self.settings["PERF_COUNT"] = "YES"
        self.requests: dict[tuple[str, int], openvino.InferRequest] = {}
        self.models: dict[str, openvino.Model] = {}
        """Models as read, kept to compile them for other numbers of streams. Their weights are memory of the bundle."""
        self._say_what_is_slow(entry)

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

    def _say_what_is_slow(self, entry: GraphEntry) -> None:
        """Open the step graph; log where it does not run as it was written to."""
        step = self._request("step", self.bundle.batch)
        layers = _layers(step)
        found = _computed(layers)
        if entry.precision in ("bf16", "int8") and 2 * found[entry.precision] < found.total():
            log.warning(
                "openvino: of %d products only %d run in %s", found.total(), found[entry.precision], entry.precision
            )
        written_for_it = entry.backends is not None and entry.precision != "int8"
        if written_for_it and SNIPPETS not in self.settings and "Softmax" in dict(layers):
            log.warning(
                "openvino: attention runs as several kernels, slower than the one that the graph is written for"
            )

    def tensor(self, array: NDArray[Any]) -> Any:
        return openvino.Tensor(array, shared_memory=True)

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        request = self._request(graph, batch)
        for name, tensor in (inputs | outputs).items():
            request.set_tensor(name, tensor)
        request.infer(share_outputs=True)  # else it copies them once more

    def free(self) -> None:
        self.requests.clear()
        self.models.clear()


def bfloat16_settings() -> dict[str, str]:
    """Return the settings with which OpenVINO computes in bfloat16.

    Raises:
        BackendUnavailable: the processor has no bfloat16.
    """
    types = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in types:
        has = ", ".join(sorted(POLICIES_OF_CAPABILITIES[one] for one in types if one in POLICIES_OF_CAPABILITIES))
        raise BackendUnavailable(
            f"openvino: this processor has no bfloat16, only {has}; export the model again with a --precision that it "
            "has, or run this bundle where there is one"
        )
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    flags = cpu_flags()
    if flags and "amx_bf16" not in flags:
        # Its one kernel for attention is slower in bfloat16 than three, where there are no tiles: docs/graphs.md.
        settings[SNIPPETS] = "DISABLE"
    return settings


def computed(backend: OpenVINOBackend) -> dict[str, int]:
    """Count the products of the step by the precision that they run in, as the compiled model tells."""
    return dict(_computed(_layers(backend.requests["step", backend.bundle.batch])))


def _computed(layers: Iterable[tuple[str, str]]) -> Counter[str]:
    return Counter(POLICIES.get(kind, kind) for layer, kind in layers if layer in PRODUCTS)


def _layers(request: openvino.InferRequest) -> list[tuple[str, str]]:
    """Return the layers of a compiled graph, each with the type that it runs in."""
    nodes = [node.get_rt_info() for node in request.get_compiled_model().get_runtime_model().get_ops()]
    return [(str(node["layerType"].value), str(node["runtimePrecision"].value)) for node in nodes]


def read_model(bundle: Bundle, graph: str) -> openvino.Model:
    """Return a graph of a bundle whose weights are the memory of the bundle, which must be kept as long as the model.

    OpenVINO copies weights that it reads from memory, for each graph anew, so the copies are replaced.

    Raises:
        RuntimeError: OpenVINO cannot read it.
        ValueError: it is damaged, or reads a file that was not hashed.
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
            raise ValueError(f"{node.get_friendly_name()}: its shape does not fit its bytes")
        shared = openvino.op.Constant(tensor, shared_memory=True)
        shared.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(shared.output(0))
    return model


def profile(bundle: Bundle, drive: Drive, *, threads: int | None, steps: int) -> tuple[list[NodeTime], float]:
    """Time the nodes of a step, as the request counts them after each."""
    found: list[NodeTime] = []
    with OpenVINOBackend(bundle, threads=threads, profile=True) as backend:

        def after() -> None:
            for node in backend.requests["step", bundle.batch].get_profiling_info():
                if node.real_time:
                    found.append(NodeTime(node.node_name, node.node_type, 1000 * node.real_time.total_seconds()))

        return found, drive(backend, after=after)
