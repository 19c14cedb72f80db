"""PyTorch's settings of a program, kept from what a backend computes, and a backend's kept from the program."""

from types import TracebackType

import torch
from torch import _C


class OwnSettings:
    """Context in which PyTorch computes as if the program had set nothing, with so many threads.

    A default device, other modes that the program is in, autocast and inference mode are set aside. They belong to the
    thread that computes, and are put back, as are its number of threads and whether it records gradients. A default
    dtype and deterministic algorithms belong to the process, and backends do not depend on them.

    Each thread that computes has a number of threads of its own. One that begins to takes the number that was set last,
    by whichever thread: in the middle of a step, that of the backend.

    Ctrl-C within it leaves the program's settings as they were too. Only before the first line of `__exit__`, where
    Python runs signal handlers as it does at the start of every function, nothing is put back.

    Args:
        threads: threads within an operator; None leaves those of the program.
    """

    __slots__ = ("_autocast", "_before", "_dispatched", "_gradients", "_inference", "_modes", "_threads")

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        # A signal handler may raise after each call, so that everything is noted before it is changed. In most programs
        # there is nothing to set aside, and asking takes less than a microsecond in all.
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
        """Put back what is not as it was; after an interrupt, the rest of it."""
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
