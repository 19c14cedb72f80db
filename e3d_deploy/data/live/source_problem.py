"""Turn errors of FFmpeg into the reason why a source cannot be read, and a remedy."""

import errno
import socket
from urllib.parse import urlsplit

from e3d_deploy.data.live.address import Address
from e3d_deploy.errors import ClipError, E3DError, SourceLost


class SourceProblem(Exception):
    """Reason why a source yields no picture.

    Args:
        reason: clause that follows the name of the source in the error.
        remedy: clause that says what to do.
        is_final: True if a retry cannot succeed, such as for a wrong path or password.
    """

    def __init__(self, reason: str, remedy: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.is_final = reason, remedy, is_final

    def error(self, name: str) -> E3DError:
        """Return the error to raise: `ClipError` if the problem is final, `SourceLost` otherwise."""
        text = f"{name}: {self.reason}; {self.remedy}"
        return ClipError(text) if self.is_final else SourceLost(text)


REACH = "check that the source is switched on, and check its address and port"
CAMERAS = "list the cameras with `ls /dev/video*`"


def problem_of(error: Exception, address: Address) -> SourceProblem:
    """Return the reason for an error of FFmpeg. It omits the text of the error, which may contain a password."""
    return _of_camera(error) if address.kind == "camera" else _of_network(error, address)


def _of_camera(error: Exception) -> SourceProblem:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return SourceProblem("no such camera", f"connect the camera, or {CAMERAS}", is_final=True)
    if number in (errno.EACCES, errno.EPERM):
        return SourceProblem("no permission to open the camera", "add your user to the group `video`", is_final=True)
    if number == errno.EBUSY:
        return SourceProblem("the camera is used by another program", "close that program")
    if number in (errno.ENOTTY, errno.EINVAL):
        return SourceProblem("this device does not capture video", CAMERAS, is_final=True)
    return SourceProblem(f"the camera cannot be read ({_words(error)})", "check that the camera is connected")


def _of_network(error: Exception, address: Address) -> SourceProblem:
    import av

    number = getattr(error, "errno", None)
    if isinstance(error, av.HTTPUnauthorizedError):
        remedy = f"give a valid user name and password as {address.scheme}://USER:PASSWORD@HOST/…"
        return SourceProblem("got 401, the user name or password is missing or wrong", remedy, is_final=True)
    if isinstance(error, av.HTTPForbiddenError):
        return SourceProblem("got 403, access is forbidden", "check the permissions of the user", is_final=True)
    if isinstance(error, av.HTTPNotFoundError):
        return SourceProblem("got 404, nothing was found at this path", "check the path of the address", is_final=True)
    if isinstance(error, av.HTTPClientError):
        return SourceProblem("the server refused the request (4xx)", "check the address", is_final=True)
    if isinstance(error, av.HTTPServerError):
        return SourceProblem("the server failed (5xx)", "try again, or check the log of the server")
    if number == errno.ECONNREFUSED:
        return SourceProblem("refused the connection", REACH)
    if isinstance(error, av.ExitError) or number == errno.ETIMEDOUT:
        return SourceProblem("does not answer", REACH)
    if isinstance(error, av.InvalidDataError) and address.is_live:
        return SourceProblem("does not answer like an RTSP server", REACH)
    if isinstance(error, ValueError) and address.is_live:
        return SourceProblem("contains no video", "give the address of a stream with video", is_final=True)
    if isinstance(error, (av.InvalidDataError, ValueError)):
        remedy = (
            "give the address of a video file, an MJPEG stream or an RTSP stream; web pages and playlists are not "
            "supported"
        )
        return SourceProblem("not a video that can be read", remedy, is_final=True)
    if isinstance(error, EOFError):
        return SourceProblem("closed the connection without a picture", REACH)
    if number == errno.EIO and not _is_known(address):
        return SourceProblem("its host name cannot be resolved", "check the address, or the network of this machine")
    if number == errno.EIO and address.scheme == "https":
        remedy = "check the address, or set SSL_CERT_FILE to the certificate of the camera or of its issuer (PEM)"
        return SourceProblem("cannot be reached, or its certificate is not trusted", remedy)
    return SourceProblem(f"cannot be read ({_words(error)})", REACH)


def _is_known(address: Address) -> bool:
    try:
        socket.getaddrinfo(urlsplit(address.text).hostname, None)
    except (OSError, UnicodeError):
        return False
    return True


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
