"""Forms with files, read within bounds while they arrive."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from e3d_deploy.serve.answers import Problem

UPLOAD_S = 120.0
"""Time that an upload may take (s)."""
MOST_PICTURES = 256
"""Most pictures in one request."""
FORM_OVERHEAD_BYTES = 65_536
"""Bytes of a request beside its files: names, fields and boundaries."""


@asynccontextmanager
async def form_of(request: Request, most_bytes: int, *, most_files: int) -> AsyncIterator[FormData]:
    """Read a multipart form, no more of it than is allowed and no longer than `UPLOAD_S`.

    Raises:
        Problem: it is too large or too slow, or no such form.
    """
    limit = most_bytes + FORM_OVERHEAD_BYTES
    too_large = Problem(413, "too_large", f"an upload has at most {most_bytes:,} bytes")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(415, "form", "expected a form, multipart/form-data")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    came, receive = 0, request.receive

    async def receive_counted() -> Message:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise too_large
        return message

    stream = Request(request.scope, receive_counted).stream()
    with closing(_Parser(request.headers, stream, max_files=most_files, max_fields=16, max_part_size=1024)) as parser:
        try:
            async with asyncio.timeout(UPLOAD_S):
                form = await parser.parse()
        except TimeoutError:
            raise Problem(408, "slow", f"an upload takes at most {UPLOAD_S:g} s") from None
        except MultiPartException as error:
            raise Problem(400, "form", f"not a form: {error.message}") from error
        except ClientDisconnect as error:
            raise Problem(400, "form", "the form broke off") from error
        yield form


class _Parser(MultiPartParser):
    """Parser of forms that can be closed with its files, also with one whose end is missing."""

    spool_max_size = 16_384
    """Size up to which a file is kept in memory (bytes)."""

    def close(self) -> None:
        """Delete the files."""
        for file in self._files_to_close_on_error:
            file.close()


def check_fields(form: FormData, allowed: tuple[str, ...]) -> Mapping[str, str]:
    """Return the text fields of a form.

    Raises:
        Problem: an unknown field, a field twice, or a file where a text belongs.
    """
    found: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "clip":
            continue
        if name not in allowed or name in found or not isinstance(value, str):
            known = ", ".join(("clip", *allowed))
            raise Problem(422, "field", f"unexpected field {name[:40]!r}; a form has {known}, each text once")
        found[name] = value
    return found


def files_of(form: FormData) -> list[UploadFile]:
    """Return the files of the field `clip`.

    Raises:
        Problem: there is none, or a text.
    """
    files = [value for value in form.getlist("clip") if isinstance(value, UploadFile)]
    if not files or len(files) < len(form.getlist("clip")):
        raise Problem(422, "field", "the field `clip` takes files; send one with a file name")
    return files
