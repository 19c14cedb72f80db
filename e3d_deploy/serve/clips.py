"""Uploaded clips, stored on disk until their lifetime is over."""

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.serve.error_responses import Problem


@dataclass(frozen=True)
class StoredClip:
    """Uploaded clip on disk."""

    id: str
    path: Path
    name: str
    """File name that the viewer gave."""
    size: int
    """Size on disk (bytes)."""


class Clips:
    """Uploaded clips in a folder of their own. A clip is deleted when it has not been used for `lifetime_s`.

    Args:
        most_bytes: maximum total size of all clips (bytes).
        lifetime_s: time from the last use of a clip to its deletion (s).
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
            Problem: the clips together would exceed `most_bytes`.
        """
        self.expire()
        size, found = path.stat().st_size, secrets.token_urlsafe(12)
        clip = StoredClip(found, self.folder / (found + path.suffix), name, size)
        with self._lock:
            held = sum(one.size for one in self._clips.values())
            if held + size > self._most_bytes:
                raise Problem(429, "full", "the server stores too many clips; upload this clip later", retry=True)
            shutil.move(path, clip.path)
            self._clips[found], self._used_s[found] = clip, time.monotonic()
        return clip

    def find(self, id_: str) -> StoredClip | None:
        """Return a clip and renew its lifetime; return None if there is no such clip."""
        with self._lock:
            if id_ in self._clips:
                self._used_s[id_] = time.monotonic()
            return self._clips.get(id_)

    def expire(self) -> None:
        """Delete the clips whose lifetime is over. A session that plays such a clip has its file open and continues."""
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
