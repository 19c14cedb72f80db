"""Opens backends by name; each is imported when it is asked for, as its library may be absent."""

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.inventory import REMEDY
from e3d_deploy.policies import check_runs
from e3d_deploy.runtime.backends.protocol import Backend


def open_backend(bundle: Bundle, name: str, *, threads: int | None = None) -> Backend:
    """Open the backend of a name, running the graphs of a bundle.

    Args:
        name: `onnxruntime`, `openvino`, `torch`, which is the yardstick in float32 whatever the graphs compute in, or
            `emulated`, which runs a graph whose types nothing here has, and slowly.
        threads: threads of the processor within a step; None leaves it to the library. Backends on a GPU use none.

    Raises:
        BackendUnavailable: its library is not installed, does not load, or does not run the bundle's precision; or
            it needs a GPU, and there is none.
        BundleError: the bundle has no engine for it.
        ConfigError: no backend has this name.
    """
    check_runs(bundle.precision, name)
    try:
        match name:
            case "onnxruntime":
                from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

                return OnnxRuntimeBackend(bundle, threads=threads)
            case "openvino":
                from e3d_deploy.runtime.backends.openvino import OpenVINOBackend

                return OpenVINOBackend(bundle, threads=threads)
            case "torch":
                from e3d_deploy.runtime.backends.torch_eager import TorchBackend

                return TorchBackend.of_bundle(bundle, threads=threads)
            case "torch-compiled":
                from e3d_deploy.runtime.backends.torch_compiled import TorchCompiledBackend

                return TorchCompiledBackend(bundle, threads=threads)
            case "torch-cuda-graph":
                from e3d_deploy.runtime.backends.torch_cuda_graph import TorchGraphBackend

                return TorchGraphBackend(bundle)
            case "emulated":
                from e3d_deploy.runtime.backends.emulated import emulated_backend

                return emulated_backend(bundle, threads=threads)
            case "tensorrt" | "tensorrt-rtx":
                from e3d_deploy.runtime.backends.tensorrt import TensorRTBackend

                return TensorRTBackend(bundle, target="tensorrt" if name == "tensorrt" else "tensorrt-rtx")
            case "onnxruntime-cuda":
                from e3d_deploy.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

                return OnnxRuntimeCudaBackend(bundle)
            case _:
                raise ConfigError(f"backend: got {name!r}, expected one of auto, {', '.join(REMEDY)}")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{name}: {error.name} is not installed; {REMEDY[name]}") from error
    except ImportError as error:
        raise BackendUnavailable(f"{name}: does not load here ({error}); install it again: {REMEDY[name]}") from error
