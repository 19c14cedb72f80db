"""Settings of the server, checked once."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.errors import ConfigError
from e3d_deploy.serve.offers import Offer

LOCALHOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the server.

    Raises:
        ConfigError: a host that others can reach without a token and encryption, or half a certificate.
    """

    name: str
    """Name of the model, as the page shows it."""
    precision: str
    """Precision of the model, such as `fp32`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Port; 0 takes a free one."""
    token: str | None = None
    """Secret that every request but those for the page and its health has to know."""
    certificate: Path | None = None
    """Certificate chain of TLS (PEM)."""
    key: Path | None = None
    """Private key of the certificate (PEM)."""
    behind_proxy: bool = False
    """A reverse proxy in front encrypts the connections."""
    origins: tuple[str, ...] = ()
    """Origins beside the server's own whose pages may use it, such as `https://cameras.example`."""
    offers: tuple[Offer, ...] = ()
    """Sources that viewers may choose."""
    horizon: int = 10
    """Most frames to look ahead."""
    renewal: str | None = None
    """Renewal of the streams; None for the default of the model."""
    max_sessions: int = 32
    """Most live sessions and predictions at a time."""
    memory_limit_bytes: int | None = None
    """Most memory of the states of all streams (bytes); None for no limit."""
    idle_timeout_s: float = 300.0
    """Time after which a session without pictures, and a clip that nobody plays, expire (s)."""
    max_upload_bytes: int = 100_000_000
    """Largest body of a request (bytes)."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS: got only one of --tls-cert and --tls-key; give both")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.split()):
            raise ConfigError("token: expected printable ASCII characters; take another, such as 32 hexadecimal digits")
        if not self.is_loopback and (self.token is None or not (self.certificate or self.behind_proxy)):
            raise ConfigError(
                f"--host {self.host}: others can reach it, so it needs --token or --token-file, and either --tls-cert "
                "with --tls-key or --behind-proxy; give both, or leave --host out"
            )

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return True for a name or address of this machine that others cannot reach."""
    if host.lower() == LOCALHOST:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
