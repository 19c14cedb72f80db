"""The backend `auto`: the fastest of those that are installed and give what PyTorch recorded, on this machine."""

import hashlib
import json
import logging
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from e3d_deploy import __version__
from e3d_deploy.doctor import LIBRARIES, installed, machine
from e3d_deploy.errors import BackendUnavailable, E3DError
from e3d_deploy.files import cache_folder, write_file
from e3d_deploy.runtime.backend import REMEDY, Backend, open_backend
from e3d_deploy.runtime.bundle import Bundle
from e3d_deploy.runtime.verify import agrees

log = logging.getLogger(__name__)

ROUNDS, SECONDS = 3, 0.3
"""Candidates step in turn, at least one step and at most so long a turn."""
SPARED = {
    "torch": "the yardstick, not tried as others agree with it",
    "torch-compiled": "takes minutes to compile, not tried as others agree; ask for it by name",
}
"""What is tried only where nothing else is left, and why."""


@dataclass(frozen=True)
class Tried:
    """A candidate, and what came of it."""

    backend: str
    step_ms: float | None
    """Median of a step in turn with the others; None for one that was not timed."""
    reason: str


@dataclass(frozen=True)
class Choice:
    """What `auto` takes for a bundle on this machine, and why."""

    backend: str
    tried: tuple[Tried, ...]

    @property
    def reason(self) -> str:
        """One line."""
        return next(one.reason for one in self.tried if one.backend == self.backend)


def choose(bundle: Bundle, *, threads: int | None = None, again: bool = False) -> tuple[Backend, Choice]:
    """The backend that `auto` stands for, opened, and why it is the one.

    Each candidate has to give what PyTorch recorded in the first steps of the reference clip; of those that do, the
    one whose step is shortest is taken. PyTorch, the yardstick, is tried where no other is left. The choice is kept
    for the same graphs, machine, libraries and threads, so that the next start opens one backend alone.

    Args:
        again: do not look at what was kept.

    Raises:
        BackendUnavailable: none is installed, or none agrees.
    """
    file = cache_folder("choices") / f"{_key(bundle, threads)}.json"
    kept = None if again else _read(file)
    if kept is not None and kept.backend in installed():
        try:
            backend = open_backend(bundle, kept.backend, threads=threads)
        except E3DError as error:
            log.warning("backend %s, chosen before, does not open any more: %s", kept.backend, error)
        else:
            log.info("backend %s: %s (chosen before)", kept.backend, kept.reason)
            return backend, kept
    backend, choice = _compare(bundle, threads)
    log.info("backend %s: %s", choice.backend, choice.reason)
    if choice.backend == "torch" and bundle.precision != "fp32":
        log.warning("backend torch: computes in float32, and not in %s", bundle.precision)
    with suppress(OSError):  # a device without a place to write chooses at each start
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, (json.dumps(asdict(choice), indent=2) + "\n").encode())
    return backend, choice


def _compare(bundle: Bundle, threads: int | None) -> tuple[Backend, Choice]:
    opened: dict[str, Backend] = {}
    refused: list[Tried] = []
    for name in installed():
        if name in SPARED and opened:
            refused.append(Tried(name, None, SPARED[name]))
            continue
        try:
            backend = open_backend(bundle, name, threads=threads)
        except E3DError as error:
            refused.append(Tried(name, None, str(error)))
            continue
        reason = _refusal(bundle, backend)
        if reason is None:
            opened[name] = backend
        else:
            backend.close()
            refused.append(Tried(name, None, reason))
    for one in refused:
        level = logging.INFO if one.backend in SPARED and opened else logging.WARNING
        log.log(level, "backend %s: %s", one.backend, one.reason)
    if not opened:
        raise BackendUnavailable(_nothing(bundle, refused))
    times = _times(bundle, opened) if len(opened) > 1 else dict.fromkeys(opened)
    best = min(opened, key=lambda name: times[name] or 0)
    for name, backend in opened.items():
        if name != best:
            backend.close()
    why = "agrees with the reference"
    reasons = {
        name: f"{why}, and is the fastest that does" if name == best else f"{why}, but is slower than {best}"
        for name in opened
    }
    tried = [Tried(name, times[name], reasons[name]) for name in opened]
    return opened[best], Choice(best, (*sorted(tried, key=lambda one: one.step_ms or 0), *refused))


def _refusal(bundle: Bundle, backend: Backend) -> str | None:
    """Why a backend is not taken; None where it gives what PyTorch recorded."""
    try:
        return None if agrees(bundle, backend) else "does not give what PyTorch recorded, so it is not used"
    except Exception as error:  # whatever a library raises when it runs for the first time; the next may do better
        return f"opens but does not run ({error})"


def open_first(bundle: Bundle, *, threads: int | None = None) -> Backend:
    """The preferred backend that opens here, whether it agrees or not: what there is to prove.

    Raises:
        BackendUnavailable: none does.
    """
    refused = []
    for name in installed():
        try:
            return open_backend(bundle, name, threads=threads)
        except E3DError as error:
            refused.append(Tried(name, None, str(error)))
    raise BackendUnavailable(_nothing(bundle, refused))


def _times(bundle: Bundle, backends: dict[str, Backend]) -> dict[str, float | None]:
    """Milliseconds of a step of each, in turn."""
    frame = np.repeat(bundle.reference()["frames"][:1], bundle.batch, axis=0)
    states = {name: backend.initial_state() for name, backend in backends.items()}
    taken: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            began = now = time.perf_counter()
            while now == began or now - began < SECONDS / ROUNDS:
                started = now
                _, states[name] = backend.step(frame, states[name])
                now = time.perf_counter()
                taken[name].append(now - started)
    return {name: 1000 * float(np.median(times)) for name, times in taken.items()}


def _nothing(bundle: Bundle, refused: list[Tried]) -> str:
    if not refused:
        return f"auto: no backend is installed; {REMEDY['onnxruntime']}"
    reasons = "; ".join(f"{one.backend}: {one.reason}" for one in refused)
    return f"auto: nothing that is installed runs {bundle.path} ({reasons}); run `e3d verify`, or export it again"


def _key(bundle: Bundle, threads: int | None) -> str:
    versions = {}
    for package in (package for library in LIBRARIES for package in library.packages):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    parts = [bundle.digest, machine(), versions, threads, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Choice | None:
    try:
        kept = json.loads(file.read_text())
        return Choice(kept["backend"], tuple(Tried(**one) for one in kept["tried"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
