"""Reasons for which a live source cannot be read, in words."""

import errno
import socket
from urllib.parse import urlsplit

from e3d_deploy.data.live.address import Address
from e3d_deploy.errors import ClipError, E3DError, SourceLost


class SourceProblem(Exception):
    """Reason for which a source gives no picture.

    Args:
        reason: clause that follows the name of the source.
        remedy: clause that says what to do.
        is_final: trying again does not help, so that it is an error of whoever named the source.
    """

    def __init__(self, reason: str, remedy: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.is_final = reason, remedy, is_final

    def error(self, name: str) -> E3DError:
        """Return the error that a user sees."""
        text = f"{name}: {self.reason}; {self.remedy}"
        return ClipError(text) if self.is_final else SourceLost(text)


REACH = "check that it is switched on, and its address and port"
CAMERAS = "list the cameras with `ls /dev/video*`"


def problem_of(error: Exception, address: Address) -> SourceProblem:
    """Return the reason behind an error of FFmpeg, whose own text may hold a password."""
    return _of_camera(error) if address.kind == "camera" else _of_network(error, address)


def _of_camera(error: Exception) -> SourceProblem:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return SourceProblem("no such camera", f"connect it, or {CAMERAS}", is_final=True)
    if number in (errno.EACCES, errno.EPERM):
        return SourceProblem("no permission to open the camera", "add your user to the group `video`", is_final=True)
    if number == errno.EBUSY:
        return SourceProblem("the camera is used by another program", "close that program")
    if number in (errno.ENOTTY, errno.EINVAL):
        return SourceProblem("not a device that captures video", CAMERAS, is_final=True)
    return SourceProblem(f"the camera cannot be read ({_words(error)})", "check that it is connected")


def _of_network(error: Exception, address: Address) -> SourceProblem:
    import av

    number = getattr(error, "errno", None)
    if isinstance(error, av.HTTPUnauthorizedError):
        remedy = f"give them as {address.scheme}://USER:PASSWORD@HOST/…"
        return SourceProblem("got 401, it wants a user name and password, or other ones", remedy, is_final=True)
    if isinstance(error, av.HTTPForbiddenError):
        return SourceProblem("got 403, access is forbidden", "check the rights of the user", is_final=True)
    if isinstance(error, av.HTTPNotFoundError):
        return SourceProblem("got 404, there is nothing at this path", "check the path of the address", is_final=True)
    if isinstance(error, av.HTTPClientError):
        return SourceProblem("the server refused the request (4xx)", "check the address", is_final=True)
    if isinstance(error, av.HTTPServerError):
        return SourceProblem("the server failed (5xx)", "try again, or look into the log of the server")
    if number == errno.ECONNREFUSED:
        return SourceProblem("refused the connection", REACH)
    if isinstance(error, av.ExitError) or number == errno.ETIMEDOUT:
        return SourceProblem("does not answer", REACH)
    if isinstance(error, av.InvalidDataError) and address.is_live:
        return SourceProblem("does not answer as an RTSP server does", REACH)
    if isinstance(error, ValueError) and address.is_live:
        return SourceProblem("offers no video", "give the address of a stream that has one", is_final=True)
    if isinstance(error, (av.InvalidDataError, ValueError)):
        remedy = "give a video file, MJPEG or RTSP; a page or a playlist is not read"
        return SourceProblem("not a video that can be read", remedy, is_final=True)
    if isinstance(error, EOFError):
        return SourceProblem("closed the connection without a picture", REACH)
    if number == errno.EIO and not _is_known(address):
        return SourceProblem("the name of its host is not known", "check the address, or the network of this machine")
    if number == errno.EIO and address.scheme == "https":
        remedy = "check the address, or set SSL_CERT_FILE to the certificate of the camera or its signer (PEM)"
        return SourceProblem("cannot be connected, or its certificate is not trusted", remedy)
    return SourceProblem(f"cannot be read ({_words(error)})", REACH)


def _is_known(address: Address) -> bool:
    try:
        socket.getaddrinfo(urlsplit(address.text).hostname, None)
    except (OSError, UnicodeError):
        return False
    return True


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
