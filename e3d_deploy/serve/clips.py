"""Uploaded clips, kept on disk for a while."""

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.serve.answers import Problem


@dataclass(frozen=True)
class StoredClip:
    """An uploaded clip."""

    id: str
    path: Path
    name: str
    """Name of the file, as the viewer sent it."""
    size: int
    """Bytes on disk."""


class Clips:
    """Uploaded clips in a folder of their own, each deleted when nobody has used it for a while.

    Args:
        most_bytes: most bytes of all clips together.
        lifetime_s: time after the last use before a clip is deleted (s).
    """

    def __init__(self, *, most_bytes: int, lifetime_s: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="e3d-serve-"))
        self._most_bytes, self._lifetime_s = most_bytes, lifetime_s
        self._clips: dict[str, StoredClip] = {}
        self._used_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._clips)

    def keep(self, path: Path, name: str) -> StoredClip:
        """Move a file into the folder, and return the clip.

        Raises:
            Problem: there is no room.
        """
        self.expire()
        size, found = path.stat().st_size, secrets.token_urlsafe(12)
        clip = StoredClip(found, self.folder / (found + path.suffix), name, size)
        with self._lock:
            held = sum(one.size for one in self._clips.values())
            if held + size > self._most_bytes:
                raise Problem(429, "full", "too many clips are kept; upload this one again later", retry=True)
            shutil.move(path, clip.path)
            self._clips[found], self._used_s[found] = clip, time.monotonic()
        return clip

    def find(self, id_: str) -> StoredClip | None:
        """Return a clip, which counts as its use; None if there is none."""
        with self._lock:
            if id_ in self._clips:
                self._used_s[id_] = time.monotonic()
            return self._clips.get(id_)

    def expire(self) -> None:
        """Delete the clips whose time is over. A session that plays one keeps the file open until it ends."""
        with self._lock:
            now_s = time.monotonic()
            for found in [id_ for id_, used_s in self._used_s.items() if now_s - used_s > self._lifetime_s]:
                self._clips.pop(found).path.unlink(missing_ok=True)
                del self._used_s[found]

    def close(self) -> None:
        """Delete all clips."""
        with self._lock:
            self._clips.clear()
            self._used_s.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
