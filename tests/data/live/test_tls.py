"""Certificates of sources over HTTPS."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from e3d_deploy.errors import SourceLost
from tests.data.live.conftest import Start
from tests.data.live.peers import Peer, answering, mp4
from tests.data.live.test_bad_peers import read

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def encrypted(serve: Callable[[Peer, socket.socket, int], None], folder: Path, name: str) -> Callable[..., None]:
    """Wrap a server in TLS with a certificate for a name, and write the certificate to `cert.pem` in a folder."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=camera", "-addext", f"subjectAltName={name}", "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, *subject]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def speak(peer: Peer, connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            serve(peer, inner, number)

    return speak


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., None]:
    """Return an HTTP server of a video."""
    return answering("200 OK", {"Content-Type": "video/mp4"}, mp4(tmp_path / "film.mp4", 5))


def test_a_source_whose_certificate_is_trusted_is_read(
    start: Start, film: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    port = start(encrypted(film, tmp_path, "IP:127.0.0.1")).port
    assert read(f"https://127.0.0.1:{port}/film.mp4") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "trusted"), [("IP:127.0.0.1", "other"), ("IP:127.0.0.1", "none"), ("DNS:other.example", ".")]
)
def test_a_source_whose_certificate_is_not_trusted_is_refused(
    start: Start, film: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: str
) -> None:
    port = start(encrypted(film, tmp_path, name)).port
    folder = tmp_path / "other"
    folder.mkdir()
    encrypted(film, folder, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / trusted / "cert.pem"))
    with pytest.raises(SourceLost, match=r"its certificate is not trusted; .* SSL_CERT_FILE"):
        read(f"https://127.0.0.1:{port}/film.mp4")
