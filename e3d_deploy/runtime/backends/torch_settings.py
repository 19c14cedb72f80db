"""PyTorch's settings of a program, kept from what a backend computes, and a backend's kept from the program."""

from types import TracebackType

import torch
from torch import _C


class OwnSettings:
    """Context in which PyTorch computes as if the program had set nothing, with so many threads.

    A default device, other modes that the program is in, autocast and inference mode are set aside. They belong to the
    thread that computes, and are put back, as is its number of threads. A default dtype and deterministic algorithms
    belong to the process, and backends do not depend on them.

    Each thread that computes has a number of threads of its own. One that begins to takes the number that was set last,
    by whichever thread: in the middle of a step, that of the backend.

    Args:
        threads: threads within an operator; None leaves those of the program.
    """

    __slots__ = ("_autocast", "_before", "_dispatched", "_inference", "_modes", "_threads")

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        # In most programs there is nothing to set aside, and asking takes less than a microsecond in all.
        self._inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
        if self._inference is not None:
            self._inference.__enter__()
        self._autocast = _C._DisableAutocast() if _C._is_any_autocast_enabled() else None
        if self._autocast is not None:
            self._autocast.__enter__()  # type: ignore[no-untyped-call]
        self._modes = [_C._pop_torch_function_stack() for _ in range(_C._len_torch_function_stack())]
        self._dispatched = [_C._pop_torch_dispatch_stack(None) for _ in range(_C._len_torch_dispatch_stack())]
        self._before = self._threads
        if self._threads is not None and self._threads != torch.get_num_threads():
            self._before = torch.get_num_threads()
            torch.set_num_threads(self._threads)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None and self._before != self._threads:
            torch.set_num_threads(self._before)
        for mode in reversed(self._dispatched):
            _C._push_on_torch_dispatch_stack(mode)
        for mode in reversed(self._modes):
            _C._push_on_torch_function_stack(mode)
        if self._autocast is not None:
            self._autocast.__exit__(kind, error, trace)
        if self._inference is not None:
            self._inference.__exit__(kind, error, trace)
