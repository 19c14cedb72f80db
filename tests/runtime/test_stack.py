"""Sizes of the stacks of threads that use the runtime."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e3d_deploy.errors import ResourceLimit
from e3d_deploy.runtime.backends.specs import find, has_libraries
from e3d_deploy.runtime.process import MIN_STACK_BYTES, check_stack
from tests.fake_backend import FakeBackend, predictor_of

IN_A_THREAD = """
import sys, threading
import numpy as np
import e3d_deploy.runtime as e3d

def work():
    with e3d.load(sys.argv[1], sys.argv[2], threads=1) as predictor:
        stream = predictor.stream()
        for _ in range(3):
            stream.push(np.zeros((16, 24, 1), np.uint8))
        print(stream.predict(3).shape)

threading.stack_size(int(sys.argv[3]))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.fixture
def stack_size() -> Iterator[None]:
    """Restore the size of stacks after the test."""
    before = threading.stack_size()
    yield
    threading.stack_size(before)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch", "emulated"])
def test_backends_run_in_threads_with_the_least_stack(name: str, exported: Path) -> None:
    if not has_libraries(find(name)):
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-c", IN_A_THREAD, str(exported / "tiny.e3d"), name, str(MIN_STACK_BYTES)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "(3, 16, 24, 1)"), done.stderr


def test_a_stack_that_is_too_small_is_refused(stack_size: None) -> None:
    check_stack(starts_thread=True)
    threading.stack_size(MIN_STACK_BYTES // 2)
    check_stack()  # passes in the main thread, whose stack the system sets
    with pytest.raises(ResourceLimit, match="64 KiB, a step needs 128 KiB"):
        check_stack(starts_thread=True)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ResourceLimit):
        pool.submit(check_stack).result()
    threading.stack_size(MIN_STACK_BYTES)
    check_stack(starts_thread=True)


def test_streams_are_not_opened_on_a_stack_that_is_too_small(stack_size: None) -> None:
    predictor = predictor_of(FakeBackend())
    threading.stack_size(MIN_STACK_BYTES // 2)
    predictor.stream()
    with pytest.raises(ResourceLimit, match="a step needs 128 KiB"):
        predictor.streams()
    with ThreadPoolExecutor(1) as pool, pytest.raises(ResourceLimit, match="a step needs 128 KiB"):
        pool.submit(predictor.stream).result()
