"""Interface of the sources of sessions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from e3d_deploy.data.live.feed import Arrival


class Source(Protocol):
    """Interface of the sources of a session, implemented by `Feed` and `Webcam`."""

    @property
    def dropped(self) -> int: ...

    @property
    def frames_per_second(self) -> float | None: ...

    @property
    def is_live(self) -> bool: ...

    def take(self, timeout_s: float | None = None) -> Arrival | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ChosenSource:
    """Source that a viewer chose and that the server allows."""

    open: Callable[[], Source]
    """Function that opens the source; called in the thread of the session."""
    kind: str
    """Kind of source, used as a label of metrics: `offer`, `clip` or `webcam`."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that replace paths of the server in messages to viewers."""
    is_file: bool = False
    """True for a file on the server. A damaged file would break off again, so clients need not reconnect."""
    clip: str | None = None
    """Identifier of the clip if the source is an uploaded clip, else None."""
