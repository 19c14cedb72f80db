"""One entry per backend.

To add a backend, write its class in a new file of this folder and add an entry here. The entries import no backend: the
file of a backend is imported when the backend is opened.
"""

from functools import partial
from typing import TYPE_CHECKING

from e3d_deploy import inventory
from e3d_deploy.libraries import GPU, pip_install
from e3d_deploy.policies import POLICIES
from e3d_deploy.runtime.backends.spec import BackendSpec, Opener

if TYPE_CHECKING:
    from collections.abc import Mapping

    from e3d_deploy.runtime.backends.protocol import Backend, Profiler


def _tensorrt() -> Opener:
    from e3d_deploy.runtime.backends.tensorrt import TensorRTBackend

    return partial(TensorRTBackend, target="tensorrt")


def _tensorrt_rtx() -> Opener:
    from e3d_deploy.runtime.backends.tensorrt import TensorRTBackend

    return partial(TensorRTBackend, target="tensorrt-rtx")


def _onnxruntime_cuda() -> Opener:
    from e3d_deploy.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    return OnnxRuntimeCudaBackend


def _torch_cuda_graph() -> Opener:
    from e3d_deploy.runtime.backends.torch_cuda_graph import TorchGraphBackend

    return TorchGraphBackend


def _onnxruntime() -> Opener:
    from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def _onnxruntime_profiler() -> "Profiler":
    from e3d_deploy.runtime.backends.onnxruntime import profile

    return profile


def _openvino() -> Opener:
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend

    return OpenVINOBackend


def _openvino_products(backend: "Backend") -> "Mapping[str, int]":
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend, count_products

    assert isinstance(backend, OpenVINOBackend)
    return count_products(backend)


def _openvino_profiler() -> "Profiler":
    from e3d_deploy.runtime.backends.openvino import profile

    return profile


def _torch() -> Opener:
    from e3d_deploy.runtime.backends.torch_eager import TorchBackend

    return TorchBackend.of_bundle


def _torch_profiler() -> "Profiler":
    from e3d_deploy.runtime.backends.torch_eager import profile

    return profile


def _torch_compiled() -> Opener:
    from e3d_deploy.runtime.backends.torch_compiled import TorchCompiledBackend

    return TorchCompiledBackend


def _emulated() -> Opener:
    from e3d_deploy.runtime.backends.emulated import EmulatedBackend

    return EmulatedBackend


ALL_POLICIES = frozenset(POLICIES)
TENSORRT_VARIANTS = dict.fromkeys(POLICIES, "tensorrt")
NO_IPROFILER = (
    "times per layer need TensorRT's IProfiler, which this version does not use; `trtexec --dumpProfile` prints them"
)

ENTRIES = (
    BackendSpec(
        name="tensorrt",
        load=_tensorrt,
        modules=("tensorrt", "cuda.core"),
        install=pip_install("gpu"),
        hardware=GPU,
        device="gpu",
        policies=ALL_POLICIES - {"fp8"},
        variants=TENSORRT_VARIANTS,
        unprofiled=NO_IPROFILER,
        summary="engines that `e3d build --target tensorrt` built for this kind of GPU (TensorRT 10 or 11)",
        tested_on="never",
    ),
    BackendSpec(
        name="tensorrt-rtx",
        load=_tensorrt_rtx,
        modules=("tensorrt_rtx", "cuda.core"),
        install=pip_install("rtx"),
        hardware=GPU,
        device="gpu",
        policies=ALL_POLICIES,  # fp8 needs compute capability 8.9 or higher.
        unsupported_reason=inventory.rtx_unsupported_reason,
        variants=TENSORRT_VARIANTS,
        unprofiled=NO_IPROFILER,
        summary="engines that `e3d build --target tensorrt-rtx` built on any machine",
        tested_on="never",
    ),
    BackendSpec(
        name="onnxruntime-cuda",
        load=_onnxruntime_cuda,
        modules=("onnxruntime", "cuda.core"),
        install=pip_install("gpu"),
        hardware=GPU,
        device="gpu",
        # ONNX Runtime lists its kernels in its docs/OperatorKernels.md. It computes int8 graphs in float32.
        policies=ALL_POLICIES - {"fp8"},
        distributions=("onnxruntime-gpu",),  # The CPU-only distribution installs a module of the same name.
        # Its convolutions cannot pad only one side (microsoft/onnxruntime#26274), so it runs the shared graphs.
        variants={},
        summary="the ONNX graphs, unchanged; `onnxruntime` must be uninstalled",
        tested_on="yes, an H200",
    ),
    BackendSpec(
        name="torch-cuda-graph",
        load=_torch_cuda_graph,
        modules=("torch", "safetensors", "cuda.core"),
        install=f"{pip_install('train')} cuda-core",
        hardware=f"a PyTorch build for CUDA, {GPU}",
        device="gpu",
        policies=ALL_POLICIES - {"int8", "fp8"},  # The PyTorch model has no quantised weights.
        cuda_builds=("torch",),
        runs_graphs=False,
        summary="the PyTorch step with rings, as CUDA graphs for each batch size",
        tested_on="yes, an H200, in bf16",
    ),
    BackendSpec(
        name="onnxruntime",
        load=_onnxruntime,
        modules=("onnxruntime",),
        install=pip_install("cpu"),
        device="cpu",
        policies=frozenset({"int8", "fp16", "tf32", "fp32"}),
        variants={"fp32": "onnxruntime", "tf32": "onnxruntime"},
        profiler=_onnxruntime_profiler,
        explained_by="session",
        summary="the ONNX graphs, unchanged",
        tested_on="yes",
    ),
    BackendSpec(
        name="openvino",
        load=_openvino,
        modules=("openvino",),
        install=pip_install("openvino"),
        device="cpu",
        policies=ALL_POLICIES - {"fp8"},
        variants=dict.fromkeys(("fp32", "tf32"), "openvino") | dict.fromkeys(("bf16", "int8"), "openvino-direct"),
        hinted=frozenset({"bf16"}),  # Casts in the graph would take a sixth of the step time.
        count_products=_openvino_products,
        profiler=_openvino_profiler,
        summary="the ONNX graphs, compiled for each batch size",
        tested_on="yes",
    ),
    BackendSpec(
        name="torch",
        load=_torch,
        modules=("torch", "safetensors"),
        install=pip_install("train"),
        device="cpu",
        policies=ALL_POLICIES,  # This backend computes in float32, whatever the policy.
        last_resort="is the reference; not tried, because another backend agrees with it",
        runs_graphs=False,
        profiler=_torch_profiler,
        summary="the PyTorch model in float32; the reference backend of `verify`",
        tested_on="yes",
    ),
    BackendSpec(
        name="torch-compiled",
        load=_torch_compiled,
        modules=("torch", "safetensors"),
        install=pip_install("train"),
        hardware="a C++ compiler",
        device="cpu",
        # PyTorch has no fast float16 convolution on CPUs, and its model has no quantised weights for int8 and fp8.
        policies=frozenset({"bf16", "tf32", "fp32"}),
        last_resort="takes minutes to compile; not tried, because another backend agrees; open it by name",
        runs_graphs=False,
        summary="the PyTorch step with rings, compiled for the CPU by `torch.compile`",
        tested_on="yes",
    ),
    BackendSpec(
        name="emulated",
        load=_emulated,
        modules=("onnx", "onnxruntime"),
        install=pip_install("train", "cpu"),
        device="cpu",
        policies=ALL_POLICIES,
        in_auto=False,
        explained_by="emulation",
        summary="the ONNX graphs, with low types emulated by rounding in float32; slow, for `verify`",
        tested_on="yes",
    ),
)
"""All backends, in the order in which `auto` prefers them."""
