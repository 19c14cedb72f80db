"""TensorRT and TensorRT-RTX as modules: found, loaded, and heard."""

import logging
import re
from importlib import import_module
from typing import Any, Literal

from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.interrupts import INDIVISIBLE
from e3d_deploy.libraries import GPU, extra_of, is_stub, pip_install

log = logging.getLogger(__name__)

Target = Literal["tensorrt", "tensorrt-rtx"]

# The front ends are thin packages over the bindings; either will do.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


def remedy(target: Target) -> str:
    """Return how to get the library of a target."""
    command = pip_install(extra_of(target.replace("-", "_")) or target)
    return f"{command}, on a machine with {GPU}" if target == "tensorrt" else command


def library(target: Target) -> Any:
    """The module of a target.

    Raises:
        BackendUnavailable: it is not installed, or does not load here.
    """
    reasons = []
    for name in MODULES[target]:
        if is_stub(name):
            reasons.append(f"{name} is a stub in sys.modules")
            continue
        try:
            return import_module(name)
        except Exception as error:  # a broken installation may raise anything
            reasons.append((str(error) or repr(error)).splitlines()[0])
    raise BackendUnavailable(f"{target}: does not load here ({reasons[0]}); {remedy(target)}")


def capabilities(rtx: Any) -> tuple[str, ...]:
    """Return the compute capabilities that TensorRT-RTX builds for and runs on, ascending.

    Its builder takes every one that its enum names and refuses all others; a test tries them.
    """
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(rtx.ComputeCapability))
    numbers = sorted((int(name[1]), int(name[2])) for name in names if name)
    return tuple(f"{major}.{minor}" for major, minor in numbers)


def refusal(rtx: Any, capability: str) -> str | None:
    """Return why TensorRT-RTX is not for GPUs of a compute capability, and what is; None where it is for them."""
    known = capabilities(rtx)
    if capability in known:
        return None
    return (
        f"TensorRT-RTX {rtx.__version__} neither builds for nor runs on compute capability {capability}, only "
        f"{', '.join(known)}; on such a GPU use tensorrt, onnxruntime-cuda or torch-cuda-graph"
    )


def make_logger(trt: Any) -> Any:
    """TensorRT's messages into Python's logging."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        @property
        def reason(self) -> str:
            """The first error; those that follow are about its consequences."""
            return self.errors[0] if self.errors else "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
                log.info(message)
            else:
                log.debug(message)

    INDIVISIBLE.add(Logger.log.__code__)  # TensorRT swallows what is raised there
    return Logger()
