"""Process in which a command runs: its log, variables and signals, as they were once the command ends."""

import _thread
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar, cast

import click

from e3d_deploy.interrupts import DEFAULT, ENDING, INDIVISIBLE, end_at_once

T = TypeVar("T")
Handlers = dict[signal.Signals, Callable[[int, Any], None]]
_END = object()

LOG = logging.getLogger("e3d_deploy")
VARIABLES = ("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
"""Environment variables that Lightning and PyTorch set for themselves when they are used."""
_lock = threading.Lock()
_levels: list[int] = []
"""Levels of the commands that run now, nested or in several threads: the first changes, the last puts back."""
_level_before = logging.NOTSET
_variables_before: dict[str, str | None] = {}


class _OnStderr(logging.Handler):
    """Shows messages on stderr, whatever that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except Exception:
            self.handleError(record)


_handler = _OnStderr()


@contextmanager
def as_guest(*, debug: bool) -> Iterator[None]:
    """Run a command in a program of which it is a part, or the whole.

    What this package logs is shown on stderr: warnings, or everything. The root logger is the program's. Environment
    variables that libraries set are put back.
    """
    level = logging.DEBUG if debug else logging.WARNING
    with _lock:
        if not _levels:
            _begin()
        _levels.append(level)
        _set_level()
    try:
        yield
    finally:
        with _lock:
            _levels.remove(level)
            _set_level()
            if not _levels:
                _end()


def _begin() -> None:
    global _level_before, _variables_before  # noqa: PLW0603 (they belong to the process)
    _level_before = LOG.level
    _variables_before = {name: os.environ.get(name) for name in VARIABLES}
    LOG.addHandler(_handler)


def _set_level() -> None:
    LOG.setLevel(_level_before)
    if _levels:
        _handler.setLevel(min(_levels))
        if LOG.getEffectiveLevel() > min(_levels):  # raising it would take messages from the program's own handlers
            LOG.setLevel(min(_levels))


def _end() -> None:
    LOG.removeHandler(_handler)
    for name, value in _variables_before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Put the state of Python's random numbers back, of which rich draws one when it is imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


AGAIN_S = 0.05
"""Time after which a signal is sent again that came when nothing may be interrupted (s)."""
AGAIN_MOST = 20
"""Times of `AGAIN_S` that the end of a command waits for such signals, at most."""
_put_off: list[int] = []
"""Signals that are yet to be sent again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupted command, 128 and the number of the signal."""
    return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_indivisible(frame):
        _put_it_off(number)
        return
    raise Terminated(number) if number in ENDING else KeyboardInterrupt


def _put_it_off(number: int) -> None:
    _put_off.append(number)
    _thread.start_new_thread(_send_again, (number,))  # `threading` may hold a lock that a handler waits for


def _is_indivisible(frame: FrameType | None) -> bool:
    """Return True if a command imports something, enters a block, or is in code that signals must not end.

    In an import native code of libraries swallows errors, or aborts. Between what a `with` statement enters and its
    block nothing would leave it again.
    """
    if frame is not None and frame.f_globals.get("__name__") in ("contextlib", "tempfile"):
        return True
    while frame is not None and frame.f_globals.get("__name__") != "e3d_deploy.cli":
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" or frame.f_code in INDIVISIBLE:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    time.sleep(AGAIN_S)
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(cast(int, threading.main_thread().ident), number)
    else:
        signal.raise_signal(number)
    _put_off.remove(number)


@contextmanager
def _handling(handlers: Handlers, replaced: tuple[object, ...]) -> Iterator[None]:
    """Handle signals in the main thread, unless the program has handlers of its own or ignores them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in handlers if signal.getsignal(number) in replaced}
        for number in before:
            signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Terminated`, and Ctrl-C KeyboardInterrupt, so that nothing is left half-written.

    A signal that is ignored stays so, as `nohup` wants it.
    """
    handlers: Handlers = dict.fromkeys((signal.SIGINT, *ENDING), _interrupt)
    with _handling(handlers, (*DEFAULT, end_at_once)), _ignored_interrupts():
        try:
            yield
        finally:
            for _ in range(AGAIN_MOST):  # else it would come after the command, and kill the program
                if not _put_off:
                    break
                time.sleep(AGAIN_S)


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Send signals again whose exception Python ignored, as it does where an object is freed."""
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _put_it_off(exit_code(unraisable.exc_value) - 128)
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


SAME_S = 0.2
"""Time in which a signal that comes again counts as the one before: `timeout` sends each to the command twice (s)."""


class Stop:
    """Request to end a loop after the item at hand: the first Ctrl-C, SIGTERM or SIGHUP. The second ends it at once.

    KeyboardInterrupt may come at any bytecode, and would lose what was computed so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Signal that came; None before."""
        self._came_s = 0.0
        self._at_once = True
        """Nothing is lost if a signal ends the loop at once: it has not begun, or waits for the source."""

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items until a signal comes; where it comes before the first one is used, raise KeyboardInterrupt."""
        iterator, count = iter(items), 0
        try:
            while True:
                self._at_once = True
                if self.number is not None:
                    _interrupt(self.number, None)
                item = next(iterator, _END)
                self._at_once = False
                if item is _END:
                    return
                count += 1
                yield cast(T, item)
        except KeyboardInterrupt:
            self._at_once = False
            if self.number is None or count == 0:
                raise

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; raise KeyboardInterrupt where nothing is lost by it, and on the second signal."""
        if _is_indivisible(frame):
            _interrupt(number, frame)
            return
        now_s = time.monotonic()
        if number == self.number and now_s - self._came_s < SAME_S:
            return
        again, self.number, self._came_s = self.number is not None, number, now_s
        if again or self._at_once:
            _interrupt(number, None)
        with suppress(RuntimeError):  # the signal came in the middle of printing something else
            click.echo(f"{signal.Signals(number).name}: ending here; once more to end at once", err=True)

    def finish(self) -> None:
        """End the command with 128 and the number of the signal, if one came."""
        if self.number is not None:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(128 + self.number)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield the request to stop, which signals make while the block runs."""
    stop = Stop()
    handlers: Handlers = dict.fromkeys((signal.SIGINT, *ENDING), stop.handle)
    with _handling(handlers, (*DEFAULT, _interrupt)):
        yield stop
