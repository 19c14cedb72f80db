"""Import of TensorRT and TensorRT-RTX, their compute capabilities, and their log messages."""

import logging
import re
from importlib import import_module
from typing import Any, Literal

from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.interrupts import INDIVISIBLE
from e3d_deploy.libraries import GPU, extra_of, is_stub, pip_install

log = logging.getLogger(__name__)

Target = Literal["tensorrt", "tensorrt-rtx"]

# Modules to try, in order: NVIDIA's front end, then the bindings that it wraps. Either is enough.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


def remedy(target: Target) -> str:
    """Return the command that installs the library of a target."""
    command = pip_install(extra_of(target.replace("-", "_")) or target)
    return f"{command}, on a machine with {GPU}" if target == "tensorrt" else command


def library(target: Target) -> Any:
    """Import and return the module of a target.

    Raises:
        BackendUnavailable: The library is not installed, or cannot be loaded on this machine.
        ConfigError: There is no such target.
    """
    if target not in MODULES:
        raise ConfigError(f"target: got {target!r}, expected one of {', '.join(MODULES)}")
    reasons = []
    for name in MODULES[target]:
        if is_stub(name):
            reasons.append(f"{name} in sys.modules is a stub")
            continue
        try:
            return import_module(name)
        except Exception as error:  # a broken installation may raise anything
            reasons.append((str(error) or repr(error)).splitlines()[0])
    raise BackendUnavailable(f"{target}: does not load here ({reasons[0]}); {remedy(target)}")


def capabilities(rtx: Any) -> tuple[str, ...]:
    """Return the compute capabilities that TensorRT-RTX supports, in ascending order.

    The builder accepts exactly the members of its enum; a test tries them all.
    """
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(rtx.ComputeCapability))
    numbers = sorted((int(name[1]), int(name[2])) for name in names if name)
    return tuple(f"{major}.{minor}" for major, minor in numbers)


def unsupported_reason(rtx: Any, capability: str) -> str | None:
    """Return why TensorRT-RTX does not support a compute capability, and the alternatives; None if it is supported."""
    known = capabilities(rtx)
    if capability in known:
        return None
    return (
        f"TensorRT-RTX {rtx.__version__} neither builds for nor runs on compute capability {capability}, only "
        f"{', '.join(known)}; on such a GPU use tensorrt, onnxruntime-cuda or torch-cuda-graph"
    )


def make_logger(trt: Any) -> Any:
    """Return a TensorRT logger that passes messages on to Python's logging and stores errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        @property
        def reason(self) -> str:
            """First error; later errors are usually consequences of the first."""
            return self.errors[0] if self.errors else "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
                log.info(message)
            else:
                log.debug(message)

    INDIVISIBLE.add(Logger.log.__code__)  # TensorRT swallows exceptions raised there
    return Logger()
