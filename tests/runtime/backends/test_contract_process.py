"""Contract of all backends: they do not change the settings of the process, and ignore the application's."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from e3d_deploy.errors import BackendUnavailable, StreamError
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import has_libraries
from tests.runtime.backends.cases import FAKED, Case
from tests.settings import changed, settings

THREADS = 2
"""Number of PyTorch threads in the application; backends are opened with one."""


class CallsNothing(TorchFunctionMode):
    """Mode that raises at every call of a PyTorch function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the application's mode received {func}")


class DispatchesNothing(TorchDispatchMode):
    """Mode that raises at every PyTorch operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the application's mode received {func}")


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def many_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


PROGRAMS: dict[str, Any] = {
    "more threads": many_threads,
    "a default device": default_device,
    "a device as context": lambda: torch.device("meta"),
    "a default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic algorithms": deterministic,
    "a function mode": CallsNothing,
    "a dispatch mode": DispatchesNothing,
}


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 1), np.uint8)


def used_once(bundle: Bundle, name: str) -> NDArray[np.float32]:
    """Use a predictor from opening to closing, with a snapshot and two errors; return its forecasts."""
    with Predictor.of_bundle(bundle, open_backend(bundle, name, threads=1)) as predictor:
        stream = predictor.stream(renewal="none")
        with pytest.raises(StreamError):
            stream.forecast(2)
        stream.push(picture())
        other = predictor.stream(stream.snapshot(), renewal="none")
        other.push(picture())
        found = np.concatenate([stream.forecast(2), other.forecast(2)])
    with pytest.raises(StreamError):
        stream.push(picture())
    return found


def test_the_settings_of_the_process_do_not_change(arranged: tuple[BackendSpec, Bundle]) -> None:
    spec, bundle = arranged
    skip_unless_it_opens(spec, bundle)
    with many_threads():
        before = settings()
        used_once(bundle, spec.name)
        assert changed(before, settings()) == {}


def test_settings_of_the_application_do_not_change_results(arranged: tuple[BackendSpec, Bundle]) -> None:
    spec, bundle = arranged
    skip_unless_it_opens(spec, bundle)
    expected = used_once(bundle, spec.name)
    for program, make in PROGRAMS.items():
        if program == "more threads" and spec.device == "gpu":
            continue  # GPU backends ignore `threads`, and their fakes compute with the application's threads.
        setting: AbstractContextManager[Any] = make()
        with setting:
            before = modes()
            found = used_once(bundle, spec.name)
            assert modes() == before, program
        np.testing.assert_array_equal(found, expected, err_msg=program)


@pytest.mark.parametrize("program", ["inference mode", "a device as context", "a dispatch mode"])
def test_a_stream_may_be_used_under_changing_settings(case: Case, program: str) -> None:
    with Predictor.of_bundle(case.bundle, case.backend) as predictor:
        streams = [predictor.stream(renewal="none") for _ in range(2)]
        for number in range(8):  # More states than the backends keep for reuse.
            streams[0].push(picture())
            setting: AbstractContextManager[Any] = PROGRAMS[program]() if number % 2 else nullcontext()
            with setting:
                streams[1].push(picture())
        np.testing.assert_array_equal(streams[1].forecast(2), streams[0].forecast(2))


def test_other_threads_keep_their_number_of_pytorch_threads(case: Case) -> None:
    """PyTorch has a number of threads per thread; a new thread starts with the number set last."""
    found: list[int] = []
    with many_threads(), Predictor.of_bundle(case.bundle, case.backend) as predictor:

        def use() -> None:
            predictor.stream(renewal="none").push(picture())
            found.append(torch.get_num_threads())

        for work in (use, lambda: found.append(torch.get_num_threads())):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        found.append(torch.get_num_threads())
    assert found == [THREADS] * 3


def modes() -> tuple[Any, ...]:
    """Return the settings of the application, without a call that its modes would intercept."""
    return (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._is_any_autocast_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


def skip_unless_it_opens(spec: BackendSpec, bundle: Bundle) -> None:
    try:
        open_backend(bundle, spec.name, threads=1).close()
    except BackendUnavailable as error:
        if spec.name in FAKED or has_libraries(spec):
            raise
        pytest.skip(str(error))


def test_compiling_for_many_batch_sizes_restores_pytorchs_limit() -> None:
    from e3d_deploy.runtime.backends.torch_ring import compiled

    class Twice(torch.nn.Module):
        def forward(self, frame: torch.Tensor) -> torch.Tensor:
            return 2 * frame

    step, limit = compiled(Twice(), backend="eager"), torch._dynamo.config.recompile_limit
    for streams in range(1, limit + 4):
        assert step(torch.ones(streams)).tolist() == [2.0] * streams
    assert torch._dynamo.config.recompile_limit == limit
