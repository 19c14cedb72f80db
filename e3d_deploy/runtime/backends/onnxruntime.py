"""Backend that runs the ONNX graphs with ONNX Runtime on the CPU."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BundleError
from e3d_deploy.files import scratch_folder
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.host import HostBackend, Tensors
from e3d_deploy.runtime.backends.onnx_weights import check_places
from e3d_deploy.runtime.backends.protocol import Drive, NodeTime

Load = Callable[[Bundle, str, int | None], onnxruntime.InferenceSession]
"""Function that makes a session for a graph of a bundle, from the graph's name and the number of threads."""


def load_session(
    bundle: Bundle, graph: str, threads: int | None, *, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load a graph of a bundle from the bytes that were checked against the manifest.

    Args:
        threads: threads within an operator; None lets ONNX Runtime choose.
        profile: prefix of the file to which the times of the nodes are written; `end_profiling` of the session returns
            the full name. None disables profiling.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if threads is not None:
        options.intra_op_num_threads = threads
    model = held_graph(bundle, graph, OnnxRuntimeBackend.name, options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def held_graph(bundle: Bundle, graph: str, backend: str, options: onnxruntime.SessionOptions) -> bytes:
    """Return a graph for a session, and register the memory of its weights in the session's options.

    ONNX Runtime copies the weights that it needs while it creates the session.

    Args:
        backend: name of the backend, for which the bundle may have a backend-specific graph.
        options: options to which the weights are added.

    Raises:
        ValueError: the graph is damaged, or reads weights from a file that is not one of the bundle's.
    """
    model, weights = bundle.onnx(graph, backend), bundle.weights
    check_places(model, weights)  # ONNX Runtime would search the working directory for other files.
    options.add_external_initializers_from_files_in_memory(
        list(weights), list(weights.values()), [len(content) for content in weights.values()]
    )
    return model


class OnnxRuntimeBackend(HostBackend):
    """Backend that runs the ONNX graphs with ONNX Runtime, with inputs and outputs bound to the memory of states.

    Args:
        load: function that makes the session of a graph.

    Raises:
        BundleError: ONNX Runtime cannot load the step graph. An error in another graph is raised when that graph first
            runs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, load: Load = load_session) -> None:
        super().__init__(bundle)
        self.threads, self.load = threads, load
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._session("step")

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        if graph in self.sessions:
            return self.sessions[graph]
        entry = self.bundle.entry(graph, self.name)
        file = self.bundle.path / entry.file
        try:
            session = self.load(self.bundle, graph, self.threads)
        except MemoryError:
            raise
        except Exception as error:  # The exceptions of ONNX Runtime have no common base class.
            raise BundleError(f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error})") from error
        both = {"inputs": (session.get_inputs(), entry.inputs), "outputs": (session.get_outputs(), entry.outputs)}
        for direction, (found, listed) in both.items():
            if [(one.name, tuple(one.shape)) for one in found] != [(one.name, one.shape) for one in listed]:
                raise BundleError(f"{file}: its {direction} differ from those in the manifest; export the model again")
        self.sessions[graph] = session
        return session

    def tensor(self, array: NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)  # On the CPU this shares the memory.

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        session = self._session(graph)
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        session.run_with_iobinding(binding)

    def free(self) -> None:
        self.sessions.clear()


def profile(bundle: Bundle, drive: Drive, *, threads: int | None, steps: int) -> tuple[list[NodeTime], float]:
    """Time the nodes of a step with the trace that ONNX Runtime writes; see `protocol.Profiler`."""
    with scratch_folder() as folder:
        load = partial(load_session, profile=folder / "step")
        with OnnxRuntimeBackend(bundle, threads=threads, load=load) as backend:
            step_ms = drive(backend)
            file = Path(backend.sessions["step"].end_profiling())
        return list(_last_runs(json.loads(file.read_text()), steps)), step_ms


def _last_runs(events: Iterable[Mapping[str, Any]], steps: int) -> Iterator[NodeTime]:
    """Yield the times of the nodes in the last `steps` runs, from the Chrome trace of a session."""
    events = list(events)
    begin = sorted(float(event["ts"]) for event in events if event.get("name") == "model_run")[-steps]
    for event in events:
        if event.get("cat") == "Node" and float(event["ts"]) >= begin:
            name, arguments = str(event["name"]), event["args"]
            if name.endswith("_kernel_time") and isinstance(arguments, dict):
                yield NodeTime(name.removesuffix("_kernel_time"), str(arguments["op_name"]), float(event["dur"]) / 1000)
