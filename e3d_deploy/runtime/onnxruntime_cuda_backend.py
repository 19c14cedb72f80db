"""The graphs on ONNX Runtime, on a GPU of NVIDIA."""

import io
import logging
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import onnxruntime

from e3d_deploy import contract
from e3d_deploy.errors import BackendUnavailable, BundleError, EngineError, ResourceLimit
from e3d_deploy.runtime.bundle import Bundle
from e3d_deploy.runtime.cuda import Cuda
from e3d_deploy.runtime.device_backend import Addresses, DeviceBackend

log = logging.getLogger(__name__)

PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
STRICT = "session.disable_cpu_ep_fallback", "1"
NOT_ON_GPU = (
    "ONNX Runtime does not run all of it on the GPU, as its CUDA and cuDNN libraries do not load, or lack a node; "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
NO_GRAPH = -1
"""The graph number by which ONNX Runtime is told not to capture."""


class OnnxRuntimeCudaBackend(DeviceBackend):
    """Runs the graphs with inputs and outputs bound to memory of the GPU.

    ONNX Runtime captures the step itself: after warm-up runs of its own, a run of each set of states is recorded under
    a number of its own, for each thread that steps, and played from then on. What it needs for a thread it keeps until
    the session goes, so let a few threads step and stay. For each number of streams there is a session, whose shapes
    are known: else shapes are computed on the processor, and that is refused.

    Raises:
        BackendUnavailable: this ONNX Runtime has no CUDA, or there is no GPU, or it does not run all of the step there.
        BundleError: ONNX Runtime cannot load the step graph; of the others, when they are first run.
    """

    name = "onnxruntime-cuda"

    def __init__(self, bundle: Bundle) -> None:
        if PROVIDER not in onnxruntime.get_available_providers():
            raise BackendUnavailable(
                f"{self.name}: the onnxruntime {onnxruntime.__version__} that is installed is made for the CPU; "
                "pip uninstall -y onnxruntime, then pip install 'e3d_deploy[gpu]'"
            )
        cuda = Cuda()
        super().__init__(bundle, cuda, bundle.sizes)
        self.sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        self.bindings: dict[tuple[int, int], Any] = {}
        with cuda.opening():
            cuda.compile_kernel()
            _preload()
            self._session("step", bundle.batch)

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        session = self._session("step", batch)
        if (batch, side) not in self.bindings:
            self.bindings[batch, side] = self._bind(session, batch, addresses)
        self._play(session, self.bindings[batch, side], number=side + 1)

    def run_graph(self, graph: str, batch: int, addresses: Addresses) -> None:
        session = self._session(graph, batch)
        self._play(session, self._bind(session, batch, addresses), number=NO_GRAPH)

    def _session(self, graph: str, batch: int) -> onnxruntime.InferenceSession:
        if (graph, batch) in self.sessions:
            return self.sessions[graph, batch]
        file = self.bundle.graph(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*STRICT)
        if self.bundle.dynamic_batch:
            options.add_free_dimension_override_by_name(contract.ANY, batch)
        providers = [(PROVIDER, self._options(graph))]
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # its exceptions have no common base of their own
            words = str(error)
            if "fallback" in words:
                raise BackendUnavailable(f"{file}: {NOT_ON_GPU} ({words})") from error
            if "llocate memory" in words:
                raise ResourceLimit(f"{file}: the GPU has not enough memory for it ({words})") from error
            raise BundleError(f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({words})") from error
        if PROVIDER not in session.get_providers():
            raise BackendUnavailable(f"{file}: {NOT_ON_GPU} (it took {', '.join(session.get_providers())})")
        self.sessions[graph, batch] = session
        return session

    def _options(self, graph: str) -> dict[str, str]:
        """How the provider is to run a graph."""
        return {
            "device_id": str(self.cuda.number),
            "user_compute_stream": str(self.cuda.handle),
            "enable_cuda_graph": "1" if graph == "step" else "0",
            "use_tf32": "1" if self.bundle.precision == "tf32" else "0",  # 1 unless told otherwise
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
        except Exception as error:  # as above
            kind = ResourceLimit if "llocate memory" in str(error) else EngineError
            raise kind(f"{self.name}: ONNX Runtime could not run the graph ({error})") from error

    def release(self) -> None:
        self.bindings.clear()
        self.sessions.clear()


def _preload() -> None:
    """Load CUDA and cuDNN from their packages, as nobody else does where there is no PyTorch."""
    words = io.StringIO()
    with redirect_stdout(words):  # it prints what it does not find
        onnxruntime.preload_dlls()
    for line in words.getvalue().splitlines():
        log.debug("%s", line)
