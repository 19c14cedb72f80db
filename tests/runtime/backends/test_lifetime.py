"""Lifetime of backends, which finalizers may close at any moment."""

import threading

import pytest

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.backends.lifetime import Lifetime
from e3d_deploy.runtime.process import IN_BACKEND


class Counted(Lifetime):
    """Backend that counts how often it is freed."""

    name = "counted"

    def __init__(self) -> None:
        super().__init__()
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


def test_a_backend_is_freed_once() -> None:
    backend = Counted()
    for _ in range(2):
        backend.close()
    assert backend.freed == 1
    with pytest.raises(StreamError, match="was closed"):
        backend.check_open()


def test_closing_inside_a_step_of_another_backend_does_not_wait() -> None:
    backend, held, done = Counted(), threading.Event(), threading.Event()

    def hold() -> None:
        with backend.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    IN_BACKEND[threading.get_ident()] = object()
    try:
        backend.close()
    finally:
        del IN_BACKEND[threading.get_ident()]
    assert thread.is_alive()
    assert (backend.closed, backend.freed) == (True, 0)
    done.set()
    thread.join()
    backend.close()
    assert backend.freed == 1
