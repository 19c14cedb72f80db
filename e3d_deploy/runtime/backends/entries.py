"""One entry for each backend.

To add a backend, write its class in a file beside this one, and its entry here. The entries import nothing: a backend's
file is imported when it is opened.
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


def _openvino_computed(backend: "Backend") -> "Mapping[str, int]":
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend, computed

    assert isinstance(backend, OpenVINOBackend)
    return computed(backend)


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
    "time per layer comes from its IProfiler, which needs an NVIDIA GPU and is not attached in this version; "
    "`trtexec --dumpProfile` prints it"
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
        summary="engines that `e3d build --target tensorrt` made on that GPU, for TensorRT 10 or 11",
        ran="never",
    ),
    BackendSpec(
        name="tensorrt-rtx",
        load=_tensorrt_rtx,
        modules=("tensorrt_rtx", "cuda.core"),
        install=pip_install("rtx"),
        hardware=GPU,
        device="gpu",
        policies=ALL_POLICIES,  # fp8 from compute capability 8.9 on
        refusal=inventory.rtx_refusal,
        variants=TENSORRT_VARIANTS,
        unprofiled=NO_IPROFILER,
        summary="engines that `e3d build --target tensorrt-rtx` made anywhere",
        ran="never",
    ),
    BackendSpec(
        name="onnxruntime-cuda",
        load=_onnxruntime_cuda,
        modules=("onnxruntime", "cuda.core"),
        install=pip_install("gpu"),
        hardware=GPU,
        device="gpu",
        # From ONNX Runtime's table of kernels, docs/OperatorKernels.md there; int8 is computed in float32.
        policies=ALL_POLICIES - {"fp8"},
        distributions=("onnxruntime-gpu",),  # the module has the same name without CUDA
        variants={},  # it has no convolution with pads on one side alone (microsoft/onnxruntime#26274)
        summary="the ONNX graphs as they are; `onnxruntime` must be uninstalled",
        ran="yes, an H200",
    ),
    BackendSpec(
        name="torch-cuda-graph",
        load=_torch_cuda_graph,
        modules=("torch", "safetensors", "cuda.core"),
        install=f"{pip_install('train')} cuda-core",
        hardware=f"a PyTorch for CUDA, {GPU}",
        device="gpu",
        policies=ALL_POLICIES - {"int8", "fp8"},  # a bundle holds float32 weights only for these
        cuda_builds=("torch",),
        runs_graphs=False,
        summary="the step over its ring as CUDA graphs for each number of streams; compiled once the rings are full",
        ran="yes, an H200, in bf16",
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
        summary="the ONNX graphs as they are",
        ran="yes",
    ),
    BackendSpec(
        name="openvino",
        load=_openvino,
        modules=("openvino",),
        install=pip_install("openvino"),
        device="cpu",
        policies=ALL_POLICIES - {"fp8"},
        variants=dict.fromkeys(("fp32", "tf32"), "openvino") | dict.fromkeys(("bf16", "int8"), "openvino-direct"),
        hinted=frozenset({"bf16"}),  # casts in the graph cost it a sixth of a step
        computed=_openvino_computed,
        profiler=_openvino_profiler,
        summary="the ONNX graphs as they are, compiled for each number of streams",
        ran="yes",
    ),
    BackendSpec(
        name="torch",
        load=_torch,
        modules=("torch", "safetensors"),
        install=pip_install("train"),
        device="cpu",
        policies=ALL_POLICIES,  # in float32 whatever the graphs compute in
        last_resort="the yardstick, not tried as others agree with it",
        runs_graphs=False,
        profiler=_torch_profiler,
        summary="the model as it is, in float32: the yardstick of `verify`",
        ran="yes",
    ),
    BackendSpec(
        name="torch-compiled",
        load=_torch_compiled,
        modules=("torch", "safetensors"),
        install=pip_install("train"),
        hardware="a C++ compiler",
        device="cpu",
        # PyTorch has no fast convolution in float16 on processors; of int8 and fp8 graphs it has float32 weights only.
        policies=frozenset({"bf16", "tf32", "fp32"}),
        last_resort="takes minutes to compile, not tried as others agree; ask for it by name",
        runs_graphs=False,
        summary="the step over its ring, by `torch.compile` for the processor",
        ran="yes",
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
        summary="the ONNX graphs in types that nothing here has, each product rounded from float32; slow, for `verify`",
        ran="yes",
    ),
)
"""All backends, in the order in which `auto` prefers them."""
