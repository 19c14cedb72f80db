"""Log, environment variables and signals of the process during a command; all are restored when the command ends."""

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
"""Environment variables that Lightning and PyTorch set."""
_lock = threading.Lock()
_levels: list[int] = []
"""Log levels of the running commands, which may be nested or in several threads.

The first command changes the level of the log, and the last command restores the level."""
_level_before = logging.NOTSET
_variables_before: dict[str, str | None] = {}


class _OnStderr(logging.Handler):
    """Log handler that writes to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except Exception:
            self.handleError(record)


_handler = _OnStderr()


@contextmanager
def as_guest(*, debug: bool) -> Iterator[None]:
    """Run a command without lasting changes to the program that calls it.

    While the block runs, warnings of this package are printed on stderr; with `debug`, all its log messages are. The
    root logger is not changed. Environment variables that libraries set are restored at the end.
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
        if LOG.getEffectiveLevel() > min(_levels):  # a higher level would hide messages from handlers of the program
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
    """Restore the state of `random` after the block; importing rich draws a random number."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


AGAIN_S = 0.05
"""Delay before a signal that arrived during uninterruptible code is sent again (s)."""
AGAIN_MOST = 20
"""Maximum number of waits of `AGAIN_S`, at the end of a command, for signals that have not been sent again yet."""
_put_off: list[int] = []
"""Numbers of the signals that wait to be sent again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command like Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupted command: 128 plus the number of the signal."""
    return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_indivisible(frame):
        _put_it_off(number)
        return
    raise Terminated(number) if number in ENDING else KeyboardInterrupt


def _put_it_off(number: int) -> None:
    _put_off.append(number)
    _thread.start_new_thread(_send_again, (number,))  # `threading` may hold a lock that the signal handler needs


def _is_indivisible(frame: FrameType | None) -> bool:
    """Return True if the command is importing, entering a `with` block, or in code marked as indivisible.

    During an import, native code may swallow the exception or abort. An exception between `__enter__` and the block
    would skip `__exit__`.
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
    """Handle signals in the main thread.

    Handlers that are not in `replaced`, such as those of the program, stay in place.
    """
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
    """Make SIGTERM and SIGHUP raise `Terminated`, and SIGINT KeyboardInterrupt, so that cleanup code runs.

    Signals that are ignored, as under `nohup`, stay ignored.
    """
    handlers: Handlers = dict.fromkeys((signal.SIGINT, *ENDING), _interrupt)
    with _handling(handlers, (*DEFAULT, end_at_once)), _ignored_interrupts():
        try:
            yield
        finally:
            for _ in range(AGAIN_MOST):  # a signal after the command would end the calling program
                if not _put_off:
                    break
                time.sleep(AGAIN_S)


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Send a signal again if Python ignored its exception, as in `__del__`."""
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
"""Time in which a repeated signal is ignored, because `timeout` sends each signal twice (s)."""


class Stop:
    """Request to end a loop after the current item.

    The first signal sets the request, and the second one ends the loop at once. The signals are SIGINT (Ctrl-C),
    SIGTERM and SIGHUP. An immediate KeyboardInterrupt could occur at any bytecode, and the results so far would be
    lost.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Number of the received signal, if any."""
        self._received_s = 0.0
        self._at_once = True
        """True while a signal can end the loop without losing results: before the first item and between items."""

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items until a signal arrives; raise KeyboardInterrupt if it arrives before the first item."""
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
        """Record a signal; raise KeyboardInterrupt if no results would be lost, or on the second signal."""
        if _is_indivisible(frame):
            _interrupt(number, frame)
            return
        now_s = time.monotonic()
        if number == self.number and now_s - self._received_s < SAME_S:
            return
        again, self.number, self._received_s = self.number is not None, number, now_s
        if again or self._at_once:
            _interrupt(number, None)
        with suppress(RuntimeError):  # the signal interrupted another call that prints
            click.echo(
                f"{signal.Signals(number).name}: stopping after the current item; interrupt again to stop now", err=True
            )

    def finish(self) -> None:
        """End the command with 128 plus the number of the signal, if one was received."""
        if self.number is not None:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(128 + self.number)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield a `Stop` that signals set while the block runs."""
    stop = Stop()
    handlers: Handlers = dict.fromkeys((signal.SIGINT, *ENDING), stop.handle)
    with _handling(handlers, (*DEFAULT, _interrupt)):
        yield stop
