"""Settings of the process that the package must not change, because they belong to the program that uses it."""

import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch


def settings() -> dict[str, Any]:
    """Return the settings of this process and thread, for comparison."""
    return {
        "working folder": os.getcwd(),
        "environment": dict(os.environ),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.getrecursionlimit()),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": (list(warnings.filters), warnings.showwarning),
        "loggers": {name: _logger(name) for name in ("", "e3d_deploy", "e3d_deploy.data", "application")},
        "logging": (logging.root.manager.disable, logging.getLoggerClass(), logging.raiseExceptions),
        "locale": locale.setlocale(locale.LC_ALL),
        "cores": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "numpy": (np.get_printoptions(), np.geterr()),
        "randomness": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "denormals": bool(np.float32(1e-38) * np.float32(1e-3) > 0),
        "torch": _torch(),
    }


def _logger(name: str) -> tuple[Any, ...]:
    logger = logging.getLogger(name or None)
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled


def _torch() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "default device": str(torch.get_default_device()),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "products": [kind.fp32_precision for kind in (backends, backends.mkldnn.matmul, backends.mkldnn.conv)],
        "cudnn": backends.cudnn.benchmark,
        "recompile limit": torch._dynamo.config.recompile_limit,
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ, as (before, after)."""
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
