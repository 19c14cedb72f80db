"""Cache of TensorRT plans, which later builds from the same inputs reuse.

An entry is a folder that contains a plan and its sidecar. The name of the folder is the key, a hash of the inputs of
the build. Entries appear atomically, and the least recently used ones are removed first. Other files in the cache
folder are not touched. The cache does not make a plan safe to load: a bundle records the hashes of its plans, and only
plans with these hashes are loaded.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import ConfigError
from e3d_deploy.files import cache_folder, file_above, locked, sha256, workspace, write_file
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent

PLAN, SIDECAR, DURATIONS = "engine.plan", "engine.json", "durations.json"
LIMIT_BYTES = 10_000_000_000
"""Default maximum size of all plans together (bytes)."""
KEY = re.compile(r"[0-9a-f]{64}")


def key_of(parts: Mapping[str, str]) -> str:
    """Return the cache key of an engine built from `parts`, the inputs of the build by name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CachedEngine:
    """Entry of the cache."""

    key: str
    sidecar: EngineSidecar
    nbytes: int
    used: datetime
    """Time when the engine was built or most recently taken from the cache."""

    @property
    def parts(self) -> Mapping[str, str]:
        """Inputs of the build by name, from which the key is computed."""
        return self.sidecar.parts or {}


class EngineCache:
    """Cache of engines in a folder that only its owner can write to.

    Args:
        folder: folder of the cache; None for the user's cache folder, which `e3d build` uses.
        limit_bytes: maximum size of all plans together; if it is exceeded, the least recently used plans are removed.
        create: create the folder if it does not exist, and remove leftovers of killed builds.

    Raises:
        ConfigError: other users can write to the folder, so they could place native code there. `create` is False, and
            the folder does not exist, or a file is in its place.
    """

    def __init__(
        self, folder: str | Path | None = None, *, limit_bytes: int = LIMIT_BYTES, create: bool = True
    ) -> None:
        place = cache_folder("engines") if folder is None else check_path("folder", folder)
        self.folder, self.limit_bytes = place.absolute(), limit_bytes
        if create:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif (file := file_above(self.folder / "key")) is not None:
            raise ConfigError(f"{self.folder}: {file} is not a folder; give a folder with --cache, or remove the file")
        elif not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: no such folder; `e3d build` creates it, or give another with --cache")
        status = self.folder.stat()
        if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise ConfigError(
                f"{self.folder}: other users can write to it, and engines are native code; run `chmod go-w` on it, or "
                "give another folder with --cache"
            )
        if create:
            self._tidy()

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock for building the engine of a key; `waiting` is called if another process holds the lock."""
        with locked(self.folder / f"{key}.lock", waiting):
            yield

    def take(self, parts: Mapping[str, str], destination: Path, remark: Notify = silent) -> EngineSidecar | None:
        """Place the plan that was built from `parts` at `destination`, where no file may exist.

        The plan is a hard link to the file in the cache, or a copy if the file system does not support links. It is
        hashed unless its size and modification time are those recorded when it was cached. A damaged entry is removed.

        Returns:
            The sidecar of the plan, or None if the cache has no such plan.
        """
        key = key_of(parts)
        try:
            kept = self._sidecar(key)
            written = kept.extra.get("written")
            sidecar = replace(kept, extra={name: one for name, one in kept.extra.items() if name != "written"})
            place(self.folder / key / PLAN, destination)
            if _unaltered(destination, sidecar, written):
                with suppress(OSError):
                    os.utime(self.folder / key / SIDECAR)
                return sidecar
        except FileNotFoundError:
            if not (self.folder / key).exists():
                return None
        except ValueError:
            pass
        remark(f"cache entry {key[:12]} is damaged and was removed; building again")
        destination.unlink(missing_ok=True)
        self.remove(key)
        return None

    def put(self, sidecar: EngineSidecar, plan: Path) -> None:
        """Store a plan, and remove other plans to make room; a plan that is larger than the limit is not stored."""
        if plan.stat().st_size > self.limit_bytes:
            return
        key = key_of(sidecar.parts or {})
        with workspace(self.folder / "entry") as folder:
            place(plan, folder / PLAN)
            status = (folder / PLAN).stat()
            kept = {**sidecar.to_json(), "written": [status.st_size, status.st_mtime_ns]}
            (folder / SIDECAR).write_text(json.dumps(kept, indent=2) + "\n")
            self.remove(key)
            folder.replace(self.folder / key)
        self._trim(keep=key)

    def difference(self, parts: Mapping[str, str], graph: str) -> str:
        """Describe how `parts` differ from the most similar entry of a graph, such as `builder 1.7.1 → 1.8.0`."""

        def changed(other: Mapping[str, str]) -> list[str]:
            return [name for name in {**parts, **other} if parts.get(name) != other.get(name)]

        others = [one.parts for one in self.entries() if one.sidecar.graph == graph]
        if not others:
            return f"no {graph} was built before"
        nearest = min(reversed(others), key=lambda other: len(changed(other)))
        return ", ".join(f"{name} {_short(nearest.get(name))} → {_short(parts.get(name))}" for name in changed(nearest))

    def entries(self) -> list[CachedEngine]:
        """Return the readable entries, most recently used last."""
        found = []
        for key in self.keys():
            with suppress(OSError, ValueError):
                used = datetime.fromtimestamp((self.folder / key / SIDECAR).stat().st_mtime, UTC)
                nbytes = (self.folder / key / PLAN).stat().st_size
                found.append(CachedEngine(key, self._sidecar(key), nbytes, used))
        return sorted(found, key=lambda one: one.used)

    def damaged(self) -> dict[str, str]:
        """Hash every plan; return the fault of each damaged entry by its key."""
        found = {}
        for key in self.keys():
            folder = self.folder / key
            try:
                if self._sidecar(key).sha256 != sha256(folder / PLAN):
                    found[key] = "the plan is not the one that was built"
            except OSError as error:
                if folder.exists():  # if it does not, another process has removed the entry
                    found[key] = f"{Path(error.filename).name} cannot be read ({error.strerror})"
            except ValueError as error:
                found[key] = f"its sidecar is invalid ({error})"
        return found

    def remove(self, key: str) -> None:
        """Remove an entry if it exists."""
        with workspace(self.folder / "entry") as folder, suppress(FileNotFoundError):
            (self.folder / key).rename(folder / key)  # atomic; on exit the workspace is deleted with the entry in it

    def matching(self, prefix: str) -> str:
        """Return the only key that begins with `prefix`.

        Raises:
            ConfigError: no key begins with `prefix`, or more than one key does.
        """
        keys = [key for key in self.keys() if key.startswith(prefix)]
        if len(keys) != 1:
            raise ConfigError(
                f"{prefix!r}: matches {len(keys) or 'no'} keys in {self.folder}, expected one; see `e3d cache ls`"
            )
        return keys[0]

    def keys(self) -> list[str]:
        """Return the keys of all entries, including damaged ones, in sorted order."""
        return sorted(file.name for file in self.folder.iterdir() if file.is_dir() and KEY.fullmatch(file.name))

    def duration(self, kind: str) -> float | None:
        """Return the time of the last build of a kind (s); None if no such build was recorded."""
        value = self._durations().get(kind)
        return float(value) if isinstance(value, int | float) else None

    def remember(self, kind: str, seconds: float) -> None:
        """Record the time of a build, for `duration`."""
        text = json.dumps({**self._durations(), kind: seconds}, indent=2) + "\n"
        write_file(self.folder / DURATIONS, text.encode())

    def _tidy(self) -> None:
        """Remove leftovers of killed builds."""
        for name in ("entry", DURATIONS):
            with workspace(self.folder / name):
                pass
        for lock in self.folder.glob("*.lock"):
            if KEY.fullmatch(lock.stem):
                with suppress(BlockingIOError), locked(lock, None):
                    pass

    def _sidecar(self, key: str) -> EngineSidecar:
        """Return the sidecar of a plan.

        Raises:
            OSError: the sidecar cannot be read.
            ValueError: the sidecar is invalid or belongs to a different key.
        """
        sidecar = EngineSidecar.from_json(json.loads((self.folder / key / SIDECAR).read_text()))
        if key_of(sidecar.parts or {}) != key:
            raise ValueError("it belongs to a different key")
        return sidecar

    def _durations(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / DURATIONS).read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def _trim(self, keep: str) -> None:
        entries = self.entries()
        total = sum(one.nbytes for one in entries)
        for one in entries:
            if total > self.limit_bytes and one.key != keep:
                self.remove(one.key)
                total -= one.nbytes


def place(source: Path, destination: Path) -> None:
    """Hard-link a file to another path, or copy it if a link is not possible."""
    try:
        os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, destination)


def _unaltered(plan: Path, sidecar: EngineSidecar, written: object) -> bool:
    status = plan.stat()
    return [status.st_size, status.st_mtime_ns] == written or sha256(plan) == sidecar.sha256


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    is_hash = len(value) == 64 and set(value) <= set("0123456789abcdef")
    return f"{value[:8]}…" if is_hash else value
