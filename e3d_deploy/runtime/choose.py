"""The backend `auto`: the fastest of those that are installed and give what PyTorch recorded, on this machine."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import __version__
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.files import cache_folder, write_file
from e3d_deploy.inventory import machine, version_of
from e3d_deploy.libraries import LIBRARIES
from e3d_deploy.runtime.aged import advance, grown
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, RECOMMENDED, YARDSTICK, candidates, find
from e3d_deploy.runtime.batching import Batcher
from e3d_deploy.runtime.renewal import default_renewal
from e3d_deploy.runtime.verify import agrees
from e3d_deploy.turns import block, in_turn

log = logging.getLogger(__name__)

ROUNDS, SECONDS = 3, 0.3
"""Candidates step in turn, at least one step and at most so long a turn."""
DOES_NOT_RUN = "opens but does not run ({})"


@dataclass(frozen=True)
class Tried:
    """A candidate, and what came of it."""

    backend: str
    step_ms: float | None
    """Median time of a frame, in turn with the others (ms); None for one that was not timed."""
    reason: str


@dataclass(frozen=True)
class Choice:
    """Backend chosen by `auto` for a bundle on this machine, with the reason."""

    backend: str
    tried: tuple[Tried, ...]

    @property
    def reason(self) -> str:
        """One line."""
        return next(one.reason for one in self.tried if one.backend == self.backend)


def choose(bundle: Bundle, *, threads: int | None = None, again: bool = False) -> tuple[Backend, Choice]:
    """The backend that `auto` stands for, opened, and why it is the one.

    Each candidate has to give what PyTorch recorded in the first steps of the reference clip; of those that do, the
    one that takes the least time for a frame of a stream with the bundle's default renewal is taken. PyTorch, the
    yardstick, is tried where no other is left. The choice is kept for the same bundle, renewal, machine,
    libraries, candidates and threads, so that the next start opens one backend alone.

    Args:
        again: do not look at what was kept.

    Raises:
        BackendUnavailable: none is installed, or none agrees.
    """
    file = _file(bundle, threads)
    kept = None if again or file is None else _read(file)
    if kept is not None:
        opened = _open(bundle, kept.backend, threads)
        if not isinstance(opened, str):
            log.info("backend %s: %s (chosen before)", kept.backend, kept.reason)
            return opened, kept
        log.warning("backend %s, chosen before, does not open any more: %s", kept.backend, opened)
    backend, choice = _compare(bundle, threads)
    log.info("backend %s: %s", choice.backend, choice.reason)
    if choice.backend == YARDSTICK and bundle.precision != "fp32":
        log.warning("backend %s: computes in float32, and not in %s", choice.backend, bundle.precision)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, (json.dumps(asdict(choice), indent=2) + "\n").encode())
        except OSError as error:
            _say_not_kept(f"{error.filename}: {error.strerror}")
    return backend, choice


def _open(bundle: Bundle, name: str, threads: int | None) -> Backend | str:
    """A backend, or why it does not open."""
    try:
        return open_backend(bundle, name, threads=threads)
    except Exception as error:  # a library that is half there raises what it likes; the next may do better
        return str(error) or repr(error)


def _close(backend: Backend) -> None:
    """Close a backend and ignore its errors.

    A backend that broke off may not close cleanly, which must not keep `auto` from taking another.
    """
    with suppress(Exception):
        backend.close()


def _compare(bundle: Bundle, threads: int | None) -> tuple[Backend, Choice]:
    opened: dict[str, Backend] = {}
    try:
        choice = _rank(bundle, threads, opened)
        return opened.pop(choice.backend), choice
    finally:
        for backend in opened.values():
            _close(backend)


def _rank(bundle: Bundle, threads: int | None, opened: dict[str, Backend]) -> Choice:
    """Choose the fastest backend that agrees with the reference, and leave all that agree in `opened`."""
    refused: list[Tried] = []
    times: dict[str, float | None] = {}

    def refuse(name: str, reason: str) -> None:
        refused.append(Tried(name, None, reason))
        if name in opened:
            _close(opened.pop(name))

    names = candidates()
    spared = {name: spec.last_resort for name, spec in BACKENDS.items() if spec.last_resort}
    for group in ([name for name in names if name not in spared], *([name] for name in spared if name in names)):
        if opened:
            refused += [Tried(name, None, spared[name]) for name in group]
            continue
        for name in group:
            backend = _open(bundle, name, threads)
            if isinstance(backend, str):
                refuse(name, backend)
                continue
            opened[name] = backend
            if reason := _refusal(bundle, backend):
                refuse(name, reason)
        times = dict.fromkeys(opened)
        for name, found in _times(bundle, opened).items() if len(opened) > 1 else ():
            if isinstance(found, str):
                refuse(name, found)
            else:
                times[name] = found
    for one in refused:
        level = logging.INFO if one.backend in spared and opened else logging.WARNING
        log.log(level, "backend %s: %s", one.backend, one.reason)
    if not opened:
        raise BackendUnavailable(_nothing(bundle, refused))
    best = min(opened, key=lambda name: times[name] or 0)
    why = "agrees with the reference"
    reasons = {
        name: f"{why}, and is the fastest that does" if name == best else f"{why}, but is slower than {best}"
        for name in opened
    }
    tried = [Tried(name, times[name], reasons[name]) for name in opened]
    return Choice(best, (*sorted(tried, key=lambda one: one.step_ms or 0), *refused))


def _refusal(bundle: Bundle, backend: Backend) -> str | None:
    """Why a backend is not taken; None where it gives what PyTorch recorded."""
    try:
        return None if agrees(bundle, backend) else "does not give what PyTorch recorded, so it is not used"
    except Exception as error:  # whatever a library raises when it runs for the first time; the next may do better
        return DOES_NOT_RUN.format(error)


def open_first(bundle: Bundle, *, threads: int | None = None) -> Backend:
    """The preferred backend that opens here, whether it agrees or not: what there is to prove.

    Raises:
        BackendUnavailable: none does.
    """
    refused = []
    for name in candidates():
        backend = _open(bundle, name, threads)
        if not isinstance(backend, str):
            return backend
        refused.append(Tried(name, None, backend))
    raise BackendUnavailable(_nothing(bundle, refused))


def _times(bundle: Bundle, backends: dict[str, Backend]) -> dict[str, float | str]:
    """Return the time of a frame of a stream with the bundle's default renewal on each, in turn (ms), or why none."""
    calls: dict[str, Callable[[], object]] = {}
    broken: dict[str, float | str] = {}

    def measure(name: str, _: int) -> list[float]:
        try:
            if name in broken:
                return []
            if name not in calls:
                calls[name] = _frame(bundle, backends[name])
            return block(calls[name], seconds=SECONDS / ROUNDS)
        except Exception as error:  # as in _refusal
            broken[name] = DOES_NOT_RUN.format(error)
            return []

    blocks = in_turn([partial(measure, name) for name in backends], ROUNDS)
    taken = {name: [one for turn in found for one in turn] for name, found in zip(backends, blocks, strict=True)}
    return {name: broken.get(name) or 1000 * float(np.median(times)) for name, times in taken.items()}


def _frame(bundle: Bundle, backend: Backend) -> Callable[[], object]:
    """Return a call that gives a stream its next frame, or one to each of the streams that the graphs step at once."""
    frame = np.repeat(bundle.reference()["frames"][:1], bundle.batch, axis=0)
    if bundle.batch != 1:
        return _stepper(backend, frame)
    renewal, batcher = default_renewal(bundle.card, bundle.context_length)[0], Batcher(backend, bundle.config)
    # The frame before the first that is timed begins a state, so that all states are stepped.
    streams = [grown(batcher, bundle.states, renewal, renewal.cycle * (2 * bundle.states.slots + renewal.warm_up) + 1)]

    def call() -> None:
        streams[:] = advance(batcher, streams, [frame])

    return call


def _stepper(backend: Backend, frame: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call that steps all streams of a backend once."""
    state = backend.initial_state()

    def call() -> None:
        nonlocal state
        _, state = backend.step(frame, state)

    return call


def _nothing(bundle: Bundle, refused: list[Tried]) -> str:
    if not refused:
        return f"auto: no backend is installed; {find(RECOMMENDED).remedy}"
    reasons = "; ".join(f"{one.backend}: {one.reason}" for one in refused)
    return f"auto: nothing that is installed runs {bundle.path} ({reasons}); run `e3d verify`, or export it again"


def _file(bundle: Bundle, threads: int | None) -> Path | None:
    try:
        return cache_folder("choices") / f"{_key(bundle, threads)}.json"
    except FileNotFoundError as error:  # as in some containers
        _say_not_kept(str(error.strerror))
        return None


@cache
def _say_not_kept(why: str) -> None:
    """Say why a choice is not kept, once in a process."""
    log.warning("the choice of a backend is not kept, so each start makes it anew: %s", why)


def _key(bundle: Bundle, threads: int | None) -> str:
    packages = [package for library in LIBRARIES for package in library.packages]
    versions = {package: found for package in packages if (found := version_of((package,)))}
    renewal = str(default_renewal(bundle.card, bundle.context_length)[0])
    # All of the manifest but what changes without changing what a backend computes.
    decisive = {**bundle.manifest.to_json(), "verification": None, "created": None, "card": None}
    parts = [decisive, renewal, machine(), versions, candidates(), threads, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Choice | None:
    try:
        kept = json.loads(file.read_text())
        choice = Choice(kept["backend"], tuple(Tried(**one) for one in kept["tried"]))
        return choice if choice.backend in {one.backend for one in choice.tried} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
