"""Cameras and network addresses, opened by FFmpeg."""

import os
import ssl
from typing import Any

from e3d_deploy.data.live.address import MOST_PIXELS, Address

PROTOCOLS = "rtsp,rtp,udp,tcp,tls,http,https,crypto,httpproxy"
"""Protocols that a source may use, also by a redirect; `file` is not among them."""
FORMATS = {
    "rtsp": "rtsp",
    "http": "mpegts,mov,matroska,avi,ogg,gif,ivf,yuv4mpegpipe,h264,hevc,mjpeg,mpjpeg,jpeg_pipe",
}
"""Readers that a source may use, by how it is opened. Playlists are not among them, as they name other addresses."""
DEBIAN = "/etc/ssl/certs/ca-certificates.crt"
"""Trusted certificates of Debian and Ubuntu, whose OpenSSL is told a folder alone."""
LATER_S = 1.0
"""Time by which FFmpeg gives up later than its caller (s), so that the caller's error is the one that is seen."""


def open_container(address: Address, silence_s: float) -> Any:
    """Open a camera or a network address with PyAV.

    No camera was at hand: of V4L2, only the call below and its errors are tested. H.264 over RTSP comes one picture
    late, as FFmpeg's parser ends a picture where the next one begins. The certificate of https:// is verified by the
    system's trusted ones; that of rtsps:// is not, as cameras sign their own.

    Args:
        silence_s: longest time that FFmpeg may wait for the peer (s), a little later than its caller.

    Raises:
        Exception: FFmpeg's error, whose text may hold a password.
    """
    import av

    patience_s = silence_s + LATER_S
    is_camera = address.kind == "camera"
    # A set of options, though an empty one, makes PyAV refuse readers that find their streams late, which would
    # ignore `max_pixels`. PyAV's annotation tells another type than its documentation.
    of_streams: Any = [{}]
    return av.open(
        address.text,
        format="v4l2" if is_camera else None,
        options={"max_pixels": str(MOST_PIXELS)} | ({} if is_camera else _network_options(address, patience_s)),
        stream_options=of_streams,
        timeout=(patience_s, patience_s),
        metadata_errors="replace",
    )


def _network_options(address: Address, patience_s: float) -> dict[str, str]:
    patience = str(round(patience_s * 1e6))  # µs
    if not address.is_live:
        options = {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS["http"], "rw_timeout": patience}
        # FFmpeg verifies nothing unless it is asked to, and PyAV's knows no file of trusted certificates.
        return options | ({"tls_verify": "1", "ca_file": _trusted()} if address.scheme == "https" else {})
    return {
        "protocol_whitelist": PROTOCOLS,
        "format_whitelist": FORMATS["rtsp"],
        "timeout": patience,
        "rtsp_transport": "tcp",  # UDP loses packets on busy networks and is often blocked
        "allowed_media_types": "video",
        "fpsprobesize": "5",  # FFmpeg would wait for 20 frames to find the rate, which a slow camera takes seconds for
    }


def _trusted() -> str:
    """Return the file of trusted certificates; where there is none, every certificate is refused."""
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ:
        return os.environ[paths.openssl_cafile_env]
    return paths.cafile or DEBIAN
