"""The graphs on ONNX Runtime, on the CPU."""

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
"""A session of a graph of a bundle, with so many threads."""


def load_session(
    bundle: Bundle, graph: str, threads: int | None, *, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load a graph of a bundle, as it was hashed.

    Args:
        profile: time each node; the name of the file that tells, `end_profiling` returns it, begins with this.
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
    """Return a graph for a session, and tell the options where its weights are in memory.

    ONNX Runtime copies what it needs of them while it makes the session.

    Raises:
        ValueError: the graph is damaged, or reads a file that was not hashed.
    """
    model, weights = bundle.onnx(graph, backend), bundle.weights
    check_places(model, weights)  # ONNX Runtime would look for another file in the working directory
    options.add_external_initializers_from_files_in_memory(
        list(weights), list(weights.values()), [len(content) for content in weights.values()]
    )
    return model


class OnnxRuntimeBackend(HostBackend):
    """Runs the graphs with inputs and outputs bound to the memory of states.

    Args:
        load: how a session is made.

    Raises:
        BundleError: ONNX Runtime cannot load the step graph; of the others, when they are first run.
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
        except Exception as error:  # its exceptions have no common base of their own
            raise BundleError(f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error})") from error
        both = {"inputs": (session.get_inputs(), entry.inputs), "outputs": (session.get_outputs(), entry.outputs)}
        for direction, (found, listed) in both.items():
            if [(one.name, tuple(one.shape)) for one in found] != [(one.name, one.shape) for one in listed]:
                raise BundleError(
                    f"{file}: its {direction} are not those that the manifest lists; export the model again"
                )
        self.sessions[graph] = session
        return session

    def tensor(self, array: NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)  # on the CPU over the same memory

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
    """Time the nodes of a step, by the trace that a session writes."""
    with scratch_folder() as folder:
        load = partial(load_session, profile=folder / "step")
        with OnnxRuntimeBackend(bundle, threads=threads, load=load) as backend:
            step_ms = drive(backend)
            file = Path(backend.sessions["step"].end_profiling())
        return list(_last_runs(json.loads(file.read_text()), steps)), step_ms


def _last_runs(events: Iterable[Mapping[str, Any]], steps: int) -> Iterator[NodeTime]:
    """Yield the nodes of the last runs of a session, from its Chrome trace."""
    events = list(events)
    begin = sorted(float(event["ts"]) for event in events if event.get("name") == "model_run")[-steps]
    for event in events:
        if event.get("cat") == "Node" and float(event["ts"]) >= begin:
            name, arguments = str(event["name"]), event["args"]
            if name.endswith("_kernel_time") and isinstance(arguments, dict):
                yield NodeTime(name.removesuffix("_kernel_time"), str(arguments["op_name"]), float(event["dur"]) / 1000)
