"""Backend that runs the ONNX graphs with ONNX Runtime on an NVIDIA GPU."""

import io
import logging
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from e3d_deploy import contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, BundleError, E3DError, EngineError, ResourceLimit
from e3d_deploy.libraries import pip_install
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.cuda import Cuda
from e3d_deploy.runtime.backends.device import Addresses, DeviceBackend
from e3d_deploy.runtime.backends.onnxruntime import held_graph

log = logging.getLogger(__name__)

PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
STRICT = "session.disable_cpu_ep_fallback", "1"
"""Session option with which ONNX Runtime refuses to run any node on the CPU."""
NOT_ON_GPU = (
    "ONNX Runtime does not run the whole graph on the GPU: CUDA or cuDNN does not load, or a node has no CUDA kernel; "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
NO_GRAPH = -1
"""Graph number with which ONNX Runtime runs a graph without capturing it."""
NO_MEMORY = re.compile("allocate memory|out of memory|ALLOC_FAILED")
"""Pattern in the messages of ONNX Runtime, CUDA, cuDNN and cuBLAS when the GPU has no memory left."""
REFUSED_CONVOLUTION = re.compile("CUDNN.*Front ?end|ConvFwd|CUDNN_STATUS_NOT_SUPPORTED", re.IGNORECASE)
"""Pattern in the messages of ONNX Runtime when cuDNN refuses a convolution."""
JSON_OF_CUDNN = "with the cudnn frontend json"
"""Start of a long dump that is cut from error messages."""


class OnnxRuntimeCudaBackend(DeviceBackend):
    """Backend that runs the ONNX graphs with ONNX Runtime, with inputs and outputs bound to GPU memory.

    ONNX Runtime captures the step as CUDA graphs, one for each of the two sets of states, each under its own graph
    number. It captures them once in each thread that steps, after warm-up runs in that thread, and keeps the graphs
    until the session is freed, so step from few, long-lived threads. If the capture fails, sessions without capture are
    used.

    Each batch size has its own session with static shapes. With dynamic shapes, ONNX Runtime would compute shapes on
    the CPU, which the option `STRICT` forbids. Opening the backend runs one step, so that a graph that does not run on
    this GPU is refused at once.

    Raises:
        BackendUnavailable: the installed ONNX Runtime is built without CUDA; or the machine has no GPU; or ONNX Runtime
            does not run the whole step on the GPU.
        BundleError: ONNX Runtime cannot load the step graph. An error in another graph is raised when that graph first
            runs.
        EngineError: ONNX Runtime cannot run the step.
        ResourceLimit: the GPU does not have enough memory.
    """

    name = "onnxruntime-cuda"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        if PROVIDER not in onnxruntime.get_available_providers():
            raise BackendUnavailable(
                f"{self.name}: the installed onnxruntime {onnxruntime.__version__} is built for the CPU only; "
                f"{pip_install('gpu')}"
            )
        cuda = Cuda()
        super().__init__(bundle, cuda, bundle.sizes)
        self.sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        self.bindings: dict[tuple[int, int], Any] = {}
        with cuda.opening():
            cuda.compile_kernel()
            _preload()
            size = self._size(bundle.batch)
            self._step(np.zeros(size.frame.shape, np.float32), size.states.initial())

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        try:
            self._run_step(batch, side, addresses)
        except (BackendUnavailable, BundleError, EngineError) as refused:
            if not self.captures:
                raise
            self.captures = False
            self.release()
            try:
                self._run_step(batch, side, addresses)
            except BaseException:  # The capture was not the cause, so other batch sizes still use it.
                self.captures = True
                self.release()
                raise
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each step is run kernel by kernel, which "
                "takes more CPU time",
                self.name,
                refused,
            )

    def _run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        session = self._session("step", batch)
        if (batch, side) not in self.bindings:
            self.bindings[batch, side] = self._bind(session, batch, addresses)
        self._play(session, self.bindings[batch, side], number=side + 1 if self.captures else NO_GRAPH)

    def run_graph(self, graph: str, batch: int, addresses: Addresses) -> None:
        session = self._session(graph, batch)
        self._play(session, self._bind(session, batch, addresses), number=NO_GRAPH)

    def _session(self, graph: str, batch: int) -> onnxruntime.InferenceSession:
        if (graph, batch) in self.sessions:
            return self.sessions[graph, batch]
        file = self.bundle.graph(graph, self.name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*STRICT)
        if self.bundle.dynamic_batch:
            options.add_free_dimension_override_by_name(contract.ANY, batch)
        providers = [(PROVIDER, self._options(graph))]
        try:
            # With the fallback, ONNX Runtime would print the error, retry on the CPU, and raise the error of the retry.
            model = held_graph(self.bundle, graph, self.name, options)
            session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # The exceptions of ONNX Runtime have no common base class.
            raise _not_loaded(file, str(error)) from error
        if PROVIDER not in session.get_providers():
            raise BackendUnavailable(f"{file}: {NOT_ON_GPU} (providers: {', '.join(session.get_providers())})")
        self.sessions[graph, batch] = session
        return session

    def _options(self, graph: str) -> dict[str, str]:
        """Return the options of the CUDA provider for a graph."""
        tf32 = self.bundle.entry("step", self.name).precision == "tf32"
        return {
            "device_id": str(self.cuda.number),
            "user_compute_stream": str(self.cuda.handle),
            "enable_cuda_graph": "1" if graph == "step" and self.captures else "0",
            "use_tf32": "1" if tf32 else "0",  # The default is 1.
        }

    def _bind(self, session: onnxruntime.InferenceSession, batch: int, addresses: Addresses) -> Any:
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, session.get_inputs()), (binding.bind_output, session.get_outputs())):
            for tensor in tensors:
                shape = [batch if side == contract.ANY else side for side in tensor.shape]
                dtype = np.int32 if tensor.type == "tensor(int32)" else np.float32
                bind(tensor.name, DEVICE, self.cuda.number, dtype, shape, addresses[tensor.name])
        return binding

    def _play(self, session: onnxruntime.InferenceSession, binding: Any, *, number: int) -> None:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # The exceptions of ONNX Runtime have no common base class.
            raise self._not_run(str(error)) from error

    def _not_run(self, words: str) -> E3DError:
        """Return the E3DError for a message with which ONNX Runtime refused a run."""
        said = " ".join(words.partition(JSON_OF_CUDNN)[0].split())
        failed = f"{self.name}: ONNX Runtime could not run the graph ({said})"
        if NO_MEMORY.search(words):
            return ResourceLimit(f"{failed}; run fewer streams at once")
        advice = "; load the bundle again or, if that does not help, use another backend"
        if REFUSED_CONVOLUTION.search(words):
            advice = (
                "; if an earlier version exported this bundle for TensorRT, its convolutions pad only one side, which "
                f"cuDNN refuses: export the model again with `--backend {self.name}`"
            )
        return EngineError(failed + advice)

    def release(self) -> None:
        self.bindings.clear()
        self.sessions.clear()


def _not_loaded(file: Path, words: str) -> E3DError:
    """Return the E3DError for a message with which ONNX Runtime refused to create a session."""
    if "fallback" in words:
        return BackendUnavailable(f"{file}: {NOT_ON_GPU} ({words})")
    if NO_MEMORY.search(words):
        return ResourceLimit(f"{file}: the GPU lacks the memory for this graph ({words}); close other programs on it")
    return BundleError(
        f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({words}); "
        "pip install --upgrade onnxruntime-gpu, or export the model again"
    )


def _preload() -> None:
    """Load CUDA and cuDNN from their Python packages; without PyTorch in the process, nothing else loads them."""
    words = io.StringIO()
    with redirect_stdout(words):  # ONNX Runtime prints the libraries that it does not find.
        onnxruntime.preload_dlls()
    for line in words.getvalue().splitlines():
        log.debug("%s", line)
