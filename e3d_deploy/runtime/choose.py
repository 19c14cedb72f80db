"""Choice of the backend `auto`: the fastest installed backend that agrees with the reference clip on this machine."""

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
from e3d_deploy.runtime.aged import advance, aged_stream
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import check_threads, open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, RECOMMENDED, REFERENCE_BACKEND, candidates, find
from e3d_deploy.runtime.batching import Batcher
from e3d_deploy.runtime.renewal import default_renewal
from e3d_deploy.runtime.verify import agrees
from e3d_deploy.turns import block, in_turn

log = logging.getLogger(__name__)

ROUNDS, SECONDS = 3, 0.3
"""Number of turns in which each candidate is timed, and the total duration of a candidate's turns (s).

A turn takes at least one step.
"""
DOES_NOT_RUN = "opens but does not run ({})"


@dataclass(frozen=True)
class Tried:
    """Candidate for `auto`, with the result of the comparison."""

    backend: str
    step_ms: float | None
    """Median time per frame, measured in turn with the other candidates (ms); None if the candidate was not timed."""
    reason: str
    """Reason why the backend was chosen or rejected; the text does not begin with the backend's name."""


@dataclass(frozen=True)
class Choice:
    """Backend that `auto` chose for a bundle on this machine."""

    backend: str
    tried: tuple[Tried, ...]
    """All candidates: those that agree with the reference, fastest first, then the rejected ones."""

    @property
    def reason(self) -> str:
        """Reason for the choice, one line."""
        return next(one.reason for one in self.tried if one.backend == self.backend)


def choose(bundle: Bundle | str | Path, *, threads: int | None = None, again: bool = False) -> tuple[Backend, Choice]:
    """Choose the backend for `auto`, and return it opened, with the reason for the choice.

    A candidate is an installed backend that `auto` considers. It must reproduce PyTorch's recorded predictions in the
    first steps of the reference clip. Of these candidates, the one with the least time per frame is chosen; the time is
    that of a stream with the bundle's default renewal. A backend with a `last_resort`, such as PyTorch itself, is tried
    only if no other candidate agrees.

    The choice is stored in the user's cache folder, and later starts open only the chosen backend. The backends are
    compared again if the bundle, the renewal, the machine, the libraries, the candidates or `threads` change.

    Args:
        bundle: bundle, opened or as the path of its folder.
        threads: number of threads within a step; None leaves the number to the library.
        again: ignore a stored choice.

    Raises:
        BackendUnavailable: no candidate is installed, or no candidate agrees with the reference clip.
        ConfigError: `threads` is invalid.
    """
    bundle = Bundle.of(bundle)
    threads = check_threads(threads)
    file = _choice_file(bundle, threads)
    kept = None if again or file is None else _read(file)
    if kept is not None:
        opened = _open(bundle, kept.backend, threads)
        if not isinstance(opened, str):
            log.info("backend %s: %s (stored choice)", kept.backend, kept.reason)
            return opened, kept
        log.warning("backend %s: is the stored choice, but cannot be opened; choosing again (%s)", kept.backend, opened)
    backend, choice = _compare(bundle, threads)
    log.info("backend %s: %s", choice.backend, choice.reason)
    if choice.backend == REFERENCE_BACKEND and bundle.precision != "fp32":
        log.warning("backend %s: computes in float32, not in the bundle's %s", choice.backend, bundle.precision)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, (json.dumps(asdict(choice), indent=2) + "\n").encode())
        except OSError as error:
            _warn_not_stored(f"{error.filename}: {error.strerror}")
    return backend, choice


def _open(bundle: Bundle, name: str, threads: int | None) -> Backend | str:
    """Open a backend; return the reason as text if that fails."""
    try:
        return open_backend(bundle, name, threads=threads)
    except Exception as error:  # A partly installed library may raise any error; the next candidate may open.
        return str(error) or repr(error)


def _close(backend: Backend) -> None:
    """Close a backend and ignore its errors.

    A backend that failed may not close cleanly, and `auto` must still be able to choose another backend.
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
    """Choose the fastest backend that agrees with the reference.

    Args:
        opened: dictionary to which the backends that agree are added, opened; the caller closes them.
    """
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
        raise BackendUnavailable(_why_none(bundle, refused))
    best = min(opened, key=lambda name: times[name] or 0)
    why = "agrees with the reference"
    reasons = {
        name: f"{why}, and is the fastest that does" if name == best else f"{why}, but is slower than {best}"
        for name in opened
    }
    tried = [Tried(name, times[name], reasons[name]) for name in opened]
    return Choice(best, (*sorted(tried, key=lambda one: one.step_ms or 0), *refused))


def _refusal(bundle: Bundle, backend: Backend) -> str | None:
    """Return the reason for refusing a backend; None if it agrees with the reference."""
    try:
        return None if agrees(bundle, backend) else "does not agree with the reference, so it is not used"
    except Exception as error:  # A library may raise any error in its first run; the next candidate may work.
        return DOES_NOT_RUN.format(error)


def open_first(bundle: Bundle, *, threads: int | None = None) -> Backend:
    """Open the first candidate for `auto` that opens on this machine, without comparing it with the reference.

    `e3d verify` uses this function, because the comparison is its own task.

    Raises:
        BackendUnavailable: no candidate opens.
    """
    refused = []
    for name in candidates():
        backend = _open(bundle, name, threads)
        if not isinstance(backend, str):
            return backend
        refused.append(Tried(name, None, backend))
    raise BackendUnavailable(_why_none(bundle, refused))


def _times(bundle: Bundle, backends: dict[str, Backend]) -> dict[str, float | str]:
    """Measure the time per frame of a stream with the default renewal, on all backends in turn.

    Returns:
        The median time of each backend by name (ms); for a backend that does not run, the error as text.
    """
    calls: dict[str, Callable[[], object]] = {}
    broken: dict[str, float | str] = {}

    def measure(name: str, _: int) -> list[float]:
        try:
            if name in broken:
                return []
            if name not in calls:
                calls[name] = _stream_call(bundle, backends[name])
            return block(calls[name], seconds=SECONDS / ROUNDS)
        except Exception as error:  # A library may raise any error; the other backends are still measured.
            broken[name] = DOES_NOT_RUN.format(error)
            return []

    blocks = in_turn([partial(measure, name) for name in backends], ROUNDS)
    taken = {name: [one for turn in found for one in turn] for name, found in zip(backends, blocks, strict=True)}
    return {name: broken.get(name) or 1000 * float(np.median(times)) for name, times in taken.items()}


def _stream_call(bundle: Bundle, backend: Backend) -> Callable[[], object]:
    """Return a function that advances a stream by one frame.

    If the graphs step several streams at once, the function advances that number of streams.
    """
    frame = np.repeat(bundle.reference()["frames"][:1], bundle.batch, axis=0)
    if bundle.batch != 1:
        return _step_call(backend, frame)
    renewal, batcher = default_renewal(bundle.card, bundle.context_length)[0], Batcher(backend, bundle.config)
    # The stream begins a new state with the last frame before the measurement, so that it has its maximum number of
    # states when the measurement starts.
    streams = [
        aged_stream(batcher, bundle.states, renewal, renewal.cycle * (2 * bundle.states.slots + renewal.warm_up) + 1)
    ]

    def call() -> None:
        streams[:] = advance(batcher, streams, [frame])

    return call


def _step_call(backend: Backend, frame: NDArray[np.float32]) -> Callable[[], object]:
    """Return a function that steps all streams of a backend once."""
    state = backend.initial_state()

    def call() -> None:
        nonlocal state
        _, state = backend.step(frame, state)

    return call


def _why_none(bundle: Bundle, refused: list[Tried]) -> str:
    if not refused:
        return f"auto: no backend is installed; {find(RECOMMENDED).remedy}"
    reasons = "; ".join(f"{one.backend}: {one.reason}" for one in refused)
    return f"auto: no installed backend runs {bundle.path} ({reasons}); run `e3d verify`, or export it again"


def _choice_file(bundle: Bundle, threads: int | None) -> Path | None:
    """Return the file that stores the choice, or None if the user has no cache folder."""
    try:
        return cache_folder("choices") / f"{_key(bundle, threads)}.json"
    except FileNotFoundError as error:  # such as in containers whose user has no home folder
        _warn_not_stored(str(error.strerror))
        return None


@cache
def _warn_not_stored(why: str) -> None:
    """Log why a choice is not stored, once per process and reason."""
    log.warning("auto: the choice of a backend cannot be stored (%s), so each start compares the backends again", why)


def _key(bundle: Bundle, threads: int | None) -> str:
    """Return a hash over everything that a choice depends on."""
    packages = [package for library in LIBRARIES for package in library.packages]
    versions = {package: found for package in packages if (found := version_of((package,)))}
    renewal = str(default_renewal(bundle.card, bundle.context_length)[0])
    # The manifest without the fields that do not affect the output of a backend.
    decisive = {**bundle.manifest.to_json(), "verification": None, "created": None, "card": None}
    parts = [decisive, renewal, machine(), versions, candidates(), threads, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Choice | None:
    """Return the choice stored in a file, or None if the file is missing or invalid."""
    try:
        kept = json.loads(file.read_text())
        choice = Choice(kept["backend"], tuple(Tried(**one) for one in kept["tried"]))
        return choice if choice.backend in {one.backend for one in choice.tried} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
