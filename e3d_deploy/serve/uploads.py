"""Read multipart forms that contain files, within limits on size and time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from e3d_deploy.serve.error_responses import Problem

UPLOAD_S = 120.0
"""Maximum time of an upload (s)."""
MAX_PICTURES = 256
"""Maximum number of pictures in one request."""
FORM_OVERHEAD_BYTES = 65_536
"""Allowance for the content of a request besides its files: names, fields and boundaries (bytes)."""


@asynccontextmanager
async def form_of(request: Request, most_bytes: int, *, most_files: int) -> AsyncIterator[FormData]:
    """Read a multipart form, and yield it. Its temporary files are deleted at the end of the block.

    Args:
        most_bytes: maximum size of the files (bytes).
        most_files: maximum number of files.

    Raises:
        Problem: the request is not a multipart form, is too large or incomplete, or takes longer than `UPLOAD_S`.
    """
    limit = most_bytes + FORM_OVERHEAD_BYTES
    too_large = Problem(413, "too_large", f"the upload is too large, expected at most {most_bytes:,} bytes")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(415, "form", "unsupported content type, expected multipart/form-data")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    received_bytes, receive = 0, request.receive

    async def receive_counted() -> Message:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > limit:
            raise too_large
        return message

    stream = Request(request.scope, receive_counted).stream()
    with closing(_Parser(request.headers, stream, max_files=most_files, max_fields=16, max_part_size=1024)) as parser:
        try:
            async with asyncio.timeout(UPLOAD_S):
                form = await parser.parse()
        except TimeoutError:
            raise Problem(408, "slow", f"the upload took longer than {UPLOAD_S:g} s; send smaller files") from None
        except MultiPartException as error:
            raise Problem(400, "form", f"invalid form: {error.message}") from error
        except ClientDisconnect as error:
            raise Problem(400, "form", "the form is incomplete: the client disconnected") from error
        yield form


class _Parser(MultiPartParser):
    """Parser of multipart forms. `close` deletes its temporary files, even after a truncated upload."""

    spool_max_size = 16_384
    """Maximum size of a file that is kept in memory instead of on disk (bytes)."""

    def close(self) -> None:
        """Delete the temporary files."""
        for file in self._files_to_close_on_error:
            file.close()


def check_fields(form: FormData, allowed: tuple[str, ...]) -> Mapping[str, str]:
    """Return the text fields of a form.

    Args:
        allowed: names of the fields that are allowed in addition to the files in `clip`.

    Raises:
        Problem: a field is unknown, occurs twice, or contains a file instead of text.
    """
    found: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "clip":
            continue
        if name not in allowed or name in found or not isinstance(value, str):
            known = ", ".join(("clip", *allowed))
            raise Problem(
                422, "field", f"got the field {name[:40]!r}, expected {known}, with each text field only once"
            )
        found[name] = value
    return found


def files_of(form: FormData) -> list[UploadFile]:
    """Return the files of the field `clip`.

    Raises:
        Problem: the field is missing, or contains text instead of a file.
    """
    files = [value for value in form.getlist("clip") if isinstance(value, UploadFile)]
    if not files or len(files) < len(form.getlist("clip")):
        raise Problem(422, "field", "the field `clip` must contain at least one file; send each file with a file name")
    return files
