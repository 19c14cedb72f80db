"""TensorRT and TensorRT-RTX as modules: found, loaded, and heard."""

import logging
from importlib import import_module
from typing import Any, Literal

from e3d_deploy.errors import BackendUnavailable

log = logging.getLogger(__name__)

Target = Literal["tensorrt", "tensorrt-rtx"]

# The front ends are thin packages over the bindings; either will do.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
REMEDY = {
    "tensorrt": "pip install 'e3d_deploy[gpu]', on a machine with an NVIDIA GPU and its driver",
    "tensorrt-rtx": "pip install 'e3d_deploy[rtx]'",
}


def library(target: Target) -> Any:
    """The module of a target.

    Raises:
        BackendUnavailable: it is not installed, or does not load here.
    """
    reasons = []
    for name in MODULES[target]:
        try:
            return import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(str(error).splitlines()[0])
    raise BackendUnavailable(f"{target}: does not load here ({reasons[0]}); {REMEDY[target]}")


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

    return Logger()
