"""Addresses of sources, as a user types them."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from e3d_deploy.errors import ConfigError

SCHEMES = ("rtsp", "rtsps", "http", "https")
"""Schemes of network addresses that are read."""
CAMERA = re.compile(r"/dev/video\d+")
LARGEST = (4320, 8192)
"""Height and width of the largest picture that a live source may have (pixels); others may have as many pixels."""
MOST_PIXELS = LARGEST[0] * LARGEST[1]

Kind = Literal["file", "camera", "network", "stdin"]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Source of pictures, as a user named it."""

    text: str
    """Text as it was typed, with the scheme in lower case; it may hold a password."""
    kind: Kind
    """Reader of the source."""
    raw: tuple[int, int, int] | None = None
    """Shape [H, W, C] of raw frames on stdin; None for every other kind."""

    @property
    def name(self) -> str:
        """Name for tables, logs and messages: without user, password and query, which may hold a token."""
        if self.kind == "stdin":
            return "stdin"
        return public(self.text) if self.kind == "network" else self.text

    @property
    def scheme(self) -> str:
        """Scheme of a network address; empty for every other kind."""
        return self.text.partition("://")[0] if self.kind == "network" else ""

    @property
    def is_live(self) -> bool:
        """True for a camera and RTSP, which wait for nobody; of HTTP, `Feed.is_live` tells it once it is open."""
        return self.kind == "camera" or self.scheme in ("rtsp", "rtsps")


def parse_address(text: str, *, raw: tuple[int, int, int] | None = None) -> Address:
    """Return the address that a text names.

    Args:
        text: `-` for raw frames on stdin, `/dev/videoN` or another character device for a camera, an address that
            begins with rtsp://, rtsps://, http:// or https://, else the path of a video or a folder of pictures.
        raw: shape [H, W, C] of raw frames; used for `-` alone.

    Raises:
        ConfigError: another scheme, an address without a host, or `-` without a possible shape.
    """
    if text == "-":
        return Address(text=text, kind="stdin", raw=_checked(raw))
    if CAMERA.fullmatch(text) or _is_character_device(text):
        return Address(text=text, kind="camera")
    if (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)) is None:
        return Address(text=text, kind="file")
    scheme = found[1].lower()
    text = scheme + text[len(scheme) :]  # FFmpeg knows schemes in lower case alone
    address = Address(text=text, kind="network")
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        remedy = "give its path alone" if scheme == "file" else "give one of these, a path, /dev/videoN or -"
        raise ConfigError(f"{address.name}: {scheme}:// is not read, expected {known}; {remedy}")
    if not has_host(text):
        # Its name is not shown: what looks like a port may be a password.
        raise ConfigError(
            f"{scheme}://…: not an address with a host, expected {scheme}://HOST[:PORT]/PATH; write /, ?, # and @ "
            "in a user name or password as %2F, %3F, %23 and %40, and spaces as %20"
        )
    return address


def has_host(text: str) -> bool:
    """Return True if a text is an address of a host, with a port or without, that a library can take."""
    try:
        parts = urlsplit(text)
        return (
            bool(parts.hostname) and (parts.port is None or parts.port > 0) and text.isprintable() and " " not in text
        )
    except ValueError:  # the port is not a number
        return False


def public(text: str, *, with_path: bool = True) -> str:
    """Return an address for messages, without user, password and query; without its path where that is a secret too."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "…"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not with_path:
        # Where the host cannot be told from a password, neither is shown.
        return f"{scheme}://{authority.rpartition('@')[2] if has_host(text) else '…'}"
    # A password may hold an unescaped "/": all that stands before the last "@" may be a part of it.
    is_unclear = "@" in rest[len(authority) :]
    shown = ("…@" if is_unclear else "") + rest.rpartition("@")[2]
    return f"{scheme}://{re.split(r'[?#]', shown, maxsplit=1)[0]}"


def _is_character_device(text: str) -> bool:
    try:
        return stat.S_ISCHR(Path(text).stat().st_mode)
    except (OSError, ValueError):
        return False


def _checked(raw: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if raw is None:
        raise ConfigError("-: raw frames on stdin tell no size; give it with --raw HxWxC, such as --raw 480x640x3")
    H, W, C = raw
    if C not in (1, 3):
        raise ConfigError(f"raw: got {C} channels, expected 1 (gray) or 3 (RGB); convert the frames")
    if H < 1 or W < 1 or H * W > MOST_PIXELS:
        most = "×".join(map(str, LARGEST))
        raise ConfigError(f"raw: got {H}×{W} pixels, expected 1×1 to {most}; check --raw, or scale the frames")
    return H, W, C
