"""PyTorch settings of the application, which a backend disables while it computes."""

import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from e3d_deploy.runtime.backends.torch_settings import OwnSettings
from tests.runtime.backends.test_contract_calls import interrupted
from tests.settings import changed, settings

INTERRUPTS = 400


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def set_by_the_program() -> Iterator[None]:
    """Apply every setting of a thread that a backend disables."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ExitStack() as stack:
            for context in (
                *(torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta")),
                *(Functions(), Functions(), Dispatch(), Dispatch()),
            ):
                stack.enter_context(context)
            yield
    finally:
        torch.set_num_threads(threads)


def modes() -> list[Any]:
    """Return the modes of this thread, outermost first."""
    functions, dispatch = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return [
        *map(torch._C._get_function_stack_at, range(functions)),
        *map(torch._C._get_dispatch_stack_at, range(dispatch)),
    ]


def of_torch() -> dict[str, Any]:
    """Return the application's PyTorch settings in this thread."""
    return {**settings()["torch"], "which modes": modes()}


def in_own_settings(own: OwnSettings) -> None:
    with own:
        torch._C._set_grad_enabled(False)  # Like a `no_grad` that an interrupt has left open.


def before_exit_ran(error: BaseException) -> bool:
    """Return True if an interrupt was raised before the first line of `__exit__`."""
    trace, exit_ = error.__traceback__, OwnSettings.__exit__.__code__
    while trace is not None:
        if trace.tb_frame.f_code is exit_ and trace.tb_lineno == exit_.co_firstlineno:
            return True
        trace = trace.tb_next
    return False


def test_own_settings_are_pytorchs_defaults() -> None:
    with set_by_the_program():
        before = of_torch()
        with OwnSettings(2):
            assert (torch.get_num_threads(), modes()) == (2, [])
            assert torch.zeros(1).device.type == "cpu"
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert changed(before, of_torch()) == {}
        in_own_settings(OwnSettings(2))
        assert changed(before, of_torch()) == {}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_an_interrupt_restores_the_settings_of_the_application() -> None:
    chance, own, interrupts = random.Random(0), OwnSettings(2), 0

    def call() -> None:
        try:
            in_own_settings(own)
        except KeyboardInterrupt as error:
            if before_exit_ran(error):
                own.__exit__(None, None, None)
            raise

    for _ in range(INTERRUPTS):
        with set_by_the_program():
            before = of_torch()
            interrupts += interrupted(call, chance.uniform(1e-5, 1e-4))
            after = of_torch()
            assert changed(before, after) == {}
    assert interrupts > INTERRUPTS // 2
