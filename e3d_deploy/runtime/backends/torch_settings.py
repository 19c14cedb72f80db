"""Isolation of a backend's PyTorch settings from those of the application."""

from types import TracebackType

import torch
from torch import _C


class OwnSettings:
    """Context in which PyTorch ignores the application's settings.

    On entry, the default device, other function and dispatch modes, autocast and inference mode are disabled for the
    calling thread. On exit they are restored, together with the thread's number of intra-operator threads and its
    gradient mode. A default dtype and deterministic algorithms are settings of the whole process: they are not changed,
    and backends do not depend on them.

    Every thread that calls PyTorch has its own number of intra-operator threads. A thread that calls PyTorch for the
    first time starts with the number that any thread set last. If that happens during a step of a backend, it starts
    with the number of the backend.

    Ctrl-C inside the context restores the settings too. The one exception is an interrupt before the first line of
    `__exit__`, because Python runs signal handlers at the start of every function: then nothing is restored.

    Args:
        threads: threads within an operator; None keeps the application's number.
    """

    __slots__ = ("_autocast", "_before", "_dispatched", "_gradients", "_inference", "_modes", "_threads")

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        # A signal handler may raise after each call, so every setting is recorded before it is changed. In most
        # programs there is nothing to disable, and all the queries together take less than a microsecond.
        self._inference = self._autocast = self._before = None
        self._modes = self._dispatched = ()
        self._gradients = torch.is_grad_enabled()
        try:
            if torch.is_inference_mode_enabled():
                self._inference = _C._InferenceMode(False)
                self._inference.__enter__()  # type: ignore[no-untyped-call]
            if _C._is_any_autocast_enabled():
                self._autocast = _C._DisableAutocast()
                self._autocast.__enter__()  # type: ignore[no-untyped-call]
            if count := _C._len_torch_function_stack():
                self._modes = tuple(map(_C._get_function_stack_at, range(count)))
                while _C._len_torch_function_stack():
                    _C._pop_torch_function_stack()
            if count := _C._len_torch_dispatch_stack():
                self._dispatched = tuple(map(_C._get_dispatch_stack_at, range(count)))
                while _C._len_torch_dispatch_stack():
                    _C._pop_torch_dispatch_stack(None)
            if self._threads is not None and self._threads != (before := torch.get_num_threads()):
                self._before = before
                torch.set_num_threads(self._threads)
        except BaseException:
            self._restore()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._restore()
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        """Restore every setting that still differs; a second call continues after an interrupt."""
        if self._dispatched:
            while (done := _C._len_torch_dispatch_stack()) < len(self._dispatched):
                _C._push_on_torch_dispatch_stack(self._dispatched[done])
        if self._modes:
            while (done := _C._len_torch_function_stack()) < len(self._modes):
                _C._push_on_torch_function_stack(self._modes[done])
        if self._autocast is not None:
            self._autocast.__exit__(None, None, None)
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        if torch.is_grad_enabled() != self._gradients:
            _C._set_grad_enabled(self._gradients)
        if self._before is not None and torch.get_num_threads() != self._before:
            torch.set_num_threads(self._before)
