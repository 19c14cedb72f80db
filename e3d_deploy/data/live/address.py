"""Parse and check the addresses of sources that users type."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from e3d_deploy.errors import ConfigError

SCHEMES = ("rtsp", "rtsps", "http", "https")
"""URL schemes of the network addresses that can be read."""
CAMERA = re.compile(r"/dev/video\d+")
LARGEST = (4320, 8192)
"""Height and width of the largest picture of a live source (pixels). A different aspect ratio with at most the same
number of pixels is allowed."""
MAX_PIXELS = LARGEST[0] * LARGEST[1]
"""Maximum number of pixels in a picture of a live source."""

Kind = Literal["file", "camera", "network", "stdin"]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Address of a source of pictures, as a user typed it."""

    text: str
    """Typed text, with the scheme in lower case. It may contain a password."""
    kind: Kind
    """Kind of source, which decides how the source is read."""
    raw: tuple[int, int, int] | None = None
    """Shape [H, W, C] of the raw pictures on standard input; None for every other kind."""

    @property
    def name(self) -> str:
        """Name for tables, logs and messages. It omits user, password and query; the query may contain a token."""
        if self.kind == "stdin":
            return "stdin"
        return public(self.text) if self.kind == "network" else self.text

    @property
    def scheme(self) -> str:
        """Scheme of a network address; an empty text for every other kind."""
        return self.text.partition("://")[0] if self.kind == "network" else ""

    @property
    def is_live(self) -> bool:
        """True for a camera and RTSP. For HTTP, `Feed.is_live` tells after the source was opened."""
        return self.kind == "camera" or self.scheme in ("rtsp", "rtsps")


def parse_address(text: str, *, raw: tuple[int, int, int] | None = None) -> Address:
    """Return the address that a text names.

    Args:
        text: `-` for raw pictures on standard input; `/dev/videoN` or another character device for a camera; an address
            that begins with rtsp://, rtsps://, http:// or https://; any other text is the path of a video or of a
            folder of pictures.
        raw: shape [H, W, C] of raw pictures, used only for `-`.

    Raises:
        ConfigError: the scheme is not supported, or the address has no host.
        ConfigError: the text is `-`, and `raw` is missing or invalid.
    """
    if text == "-":
        return Address(text=text, kind="stdin", raw=_checked(raw))
    if CAMERA.fullmatch(text) or _is_character_device(text):
        return Address(text=text, kind="camera")
    if (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)) is None:
        return Address(text=text, kind="file")
    scheme = found[1].lower()
    text = scheme + text[len(scheme) :]  # FFmpeg accepts only lower-case schemes
    address = Address(text=text, kind="network")
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        remedy = "give only its path" if scheme == "file" else "give one of these, a path, /dev/videoN or -"
        raise ConfigError(f"{address.name}: got the scheme {scheme}://, expected {known}; {remedy}")
    if not has_host(text):
        # The message omits the address, because the text after a colon may be a password instead of a port.
        raise ConfigError(
            f"{scheme}://…: the address has no valid host, expected {scheme}://HOST[:PORT]/PATH; write /, ?, # and @ "
            "in a user name or password as %2F, %3F, %23 and %40, and spaces as %20"
        )
    return address


def has_host(text: str) -> bool:
    """Return True if a text is an address with a valid host and, if it has a port, a valid port.

    All characters must be printable, and spaces are not allowed.
    """
    try:
        parts = urlsplit(text)
        return (
            bool(parts.hostname) and (parts.port is None or parts.port > 0) and text.isprintable() and " " not in text
        )
    except ValueError:  # the port is not a number
        return False


def public(text: str, *, with_path: bool = True) -> str:
    """Return an address for messages, without user, password and query.

    Args:
        with_path: include the path; False if the path is secret too.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "…"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not with_path:
        # Without a valid host, the text may be a password, so it is not shown.
        return f"{scheme}://{authority.rpartition('@')[2] if has_host(text) else '…'}"
    # A password may contain an unescaped "/", so everything before the last "@" may belong to it.
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
        raise ConfigError(
            "-: raw pictures on standard input do not include their size; give the size with --raw HxWxC, such as "
            "--raw 480x640x3"
        )
    H, W, C = raw
    if C not in (1, 3):
        raise ConfigError(f"raw: got {C} channels, expected 1 (gray) or 3 (RGB); convert the pictures")
    if H < 1 or W < 1 or H * W > MAX_PIXELS:
        most = "×".join(map(str, LARGEST))
        raise ConfigError(f"raw: got {H}×{W} pixels, expected 1×1 to {most}; check --raw, or scale the pictures")
    return H, W, C
