"""Sources of sessions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from e3d_deploy.data.live.feed import Arrival


class Source(Protocol):
    """Pictures of a session, as a `Feed` gives them."""

    @property
    def dropped(self) -> int: ...

    @property
    def frames_per_second(self) -> float | None: ...

    @property
    def is_live(self) -> bool: ...

    def take(self, timeout_s: float | None = None) -> Arrival | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Source that a viewer chose and may have."""

    open: Callable[[], Source]
    """Open it; called in the thread of the session."""
    kind: str
    """First word of its name in `open`, for metrics."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that viewers read instead of paths of the server."""
    is_file: bool = False
    """True for a file on the server, which breaks off at the same place whenever it is opened."""
    clip: str | None = None
    """Id of the uploaded clip; None for every other source."""
