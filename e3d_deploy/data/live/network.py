"""Open cameras and network addresses with FFmpeg."""

import os
import ssl
from typing import Any

from e3d_deploy.data.live.address import MAX_PIXELS, Address

PROTOCOLS = "rtsp,rtp,udp,tcp,tls,http,https,crypto,httpproxy"
"""Protocols that a source may use, even after a redirect. `file` is excluded, so that a server cannot make the program
open local files."""
FORMATS = {
    "rtsp": "rtsp",
    "http": "mpegts,mov,matroska,avi,ogg,gif,ivf,yuv4mpegpipe,h264,hevc,mjpeg,mpjpeg,jpeg_pipe",
}
"""FFmpeg demuxers that a source may use, by kind of address. Playlists are excluded, because they open further
addresses."""
DEBIAN = "/etc/ssl/certs/ca-certificates.crt"
"""File of trusted certificates of Debian and Ubuntu, whose OpenSSL is configured with only a folder."""
LATER_S = 1.0
"""Time that is added to FFmpeg's time limits (s), so that the caller's deadline passes first and gives the error."""


def open_container(address: Address, silence_s: float) -> Any:
    """Open a camera or a network address with PyAV.

    No test uses a real camera: for V4L2, the tests check only the call below and its errors. H.264 over RTSP arrives
    one picture late, because FFmpeg's parser ends a picture where the next one begins. The certificate of https:// is
    verified against the trusted certificates of the system; the certificate of rtsps:// is not verified, because
    cameras sign their own.

    Args:
        silence_s: maximum time that the caller waits for the source (s); FFmpeg waits `LATER_S` longer.

    Raises:
        Exception: FFmpeg cannot open the source; the text of its error may contain a password.
    """
    import av

    patience_s = silence_s + LATER_S
    is_camera = address.kind == "camera"
    # Demuxers that discover streams only while reading would ignore `max_pixels`. PyAV refuses such demuxers if it is
    # given options for streams, even empty options. The type is `Any`, because PyAV's
    # annotation contradicts its documentation.
    of_streams: Any = [{}]
    return av.open(
        address.text,
        format="v4l2" if is_camera else None,
        options={"max_pixels": str(MAX_PIXELS)} | ({} if is_camera else _network_options(address, patience_s)),
        stream_options=of_streams,
        timeout=(patience_s, patience_s),
        metadata_errors="replace",
    )


def _network_options(address: Address, patience_s: float) -> dict[str, str]:
    patience = str(round(patience_s * 1e6))  # µs
    if not address.is_live:
        options = {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS["http"], "rw_timeout": patience}
        # FFmpeg verifies certificates only on request, and PyAV's FFmpeg has no default file of trusted certificates.
        return options | ({"tls_verify": "1", "ca_file": _trusted()} if address.scheme == "https" else {})
    return {
        "protocol_whitelist": PROTOCOLS,
        "format_whitelist": FORMATS["rtsp"],
        "timeout": patience,
        "rtsp_transport": "tcp",  # UDP loses packets on busy networks and is often blocked
        "allowed_media_types": "video",
        "fpsprobesize": "5",  # frames; FFmpeg's default of 20 takes seconds with a slow camera
    }


def _trusted() -> str:
    """Return the path of the trusted certificates; if the file does not exist, every certificate is refused."""
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ:
        return os.environ[paths.openssl_cafile_env]
    return paths.cafile or DEBIAN
