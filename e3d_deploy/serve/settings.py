"""Settings of the server."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.errors import ConfigError
from e3d_deploy.serve.offers import Offer

LOCALHOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Raises:
        ConfigError: other machines can reach the host, but the token or the encryption is missing.
        ConfigError: only one of certificate and key is given.
        ConfigError: the token is not printable ASCII.
    """

    name: str
    """Name of the model, shown on the page."""
    precision: str
    """Precision policy of the model, such as `fp32`."""
    host: str = "127.0.0.1"
    """Host name or IP address on which the server listens."""
    port: int = 8000
    """TCP port; 0 selects a free port."""
    token: str | None = None
    """Secret that all requests need, except requests for the page and health checks; None for no token."""
    certificate: Path | None = None
    """TLS certificate chain (PEM)."""
    key: Path | None = None
    """Private key of the certificate (PEM)."""
    behind_proxy: bool = False
    """True if a reverse proxy in front of the server encrypts the connections."""
    origins: tuple[str, ...] = ()
    """Additional origins whose pages may use the server, such as `https://cameras.example`."""
    offers: tuple[Offer, ...] = ()
    """Sources that viewers may choose."""
    horizon: int = 10
    """Maximum horizon (frames)."""
    renewal: str | None = None
    """Renewal of the streams; None for the default of the model."""
    max_sessions: int = 32
    """Maximum number of concurrent live sessions; also the maximum number of streams, of which each session and each
    request to /v1/predict uses one."""
    memory_limit_bytes: int | None = None
    """Maximum memory of the states of all streams (bytes); None for no limit."""
    idle_timeout_s: float = 300.0
    """Time after which a session without pictures and messages ends, and an unused clip is deleted (s)."""
    max_upload_bytes: int = 100_000_000
    """Maximum size of an upload (bytes)."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS: got only one of --tls-cert and --tls-key; give both")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.split()):
            raise ConfigError(
                "token: expected printable ASCII characters; choose another token, such as 32 hexadecimal digits"
            )
        if not self.is_loopback and (self.token is None or not (self.certificate or self.behind_proxy)):
            raise ConfigError(
                f"--host {self.host}: other machines can reach this host, so the server needs a token and encryption; "
                "give --token or --token-file, and either --tls-cert with --tls-key or --behind-proxy; or leave --host "
                "out"
            )

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach the server (see `is_loopback`)."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return True if a host name or address can be reached only from this machine."""
    if host.lower() == LOCALHOST:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
