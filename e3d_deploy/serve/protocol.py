"""Messages of the WebSocket: JSON objects as text, and pictures with a header as bytes; see docs/serve.md."""

import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

SUBPROTOCOL = "e3d.v1"
"""WebSocket subprotocol that clients must request: name and version of the protocol in this module."""
MAX_TEXT = 4096
"""Maximum length of a text message from a client (characters)."""
LENGTH = struct.Struct("<I")
"""Format of the first field of a binary message: the length of its header (bytes)."""

END, STOPS, BAD_MESSAGE, BAD_TOKEN, FORBIDDEN, IDLE = 1000, 1001, 4400, 4401, 4403, 4408
TOO_LARGE, TOO_MANY, UNREADABLE, LOST, FAILED = 4413, 4429, 4404, 4503, 1011
"""Close codes of the WebSocket."""


class Refused(Exception):
    """Raised to end a session.

    Args:
        close_code: close code of the WebSocket.
        code: machine-readable reason, one word.
        message: reason as a sentence for the viewer.
    """

    def __init__(self, close_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.close_code, self.code, self.message = close_code, code, message


class Open(BaseModel, strict=True):
    """First message of a client."""

    type: Literal["open"]
    token: str | None = None
    source: str
    horizon: int = Field(ge=1)


class SetHorizon(BaseModel, strict=True):
    """Request to change the horizon."""

    type: Literal["horizon"]
    value: int = Field(ge=1)


class ViewerCommand(BaseModel, strict=True):
    """Command of the viewer without arguments."""

    type: Literal["pause", "resume", "reset", "close"]


Message = Annotated[Open | SetHorizon | ViewerCommand, Field(discriminator="type")]
_MESSAGES: TypeAdapter[Open | SetHorizon | ViewerCommand] = TypeAdapter(Message)


def parse(text: str) -> Open | SetHorizon | ViewerCommand:
    """Return the message in a text from a client. Unknown fields are ignored.

    Raises:
        Refused: the text is too long, or is not a valid message.
    """
    if len(text) > MAX_TEXT:
        raise Refused(TOO_LARGE, "too_large", f"got a message of {len(text)} characters, expected at most {MAX_TEXT}")
    try:
        return _MESSAGES.validate_json(text)
    except (ValidationError, UnicodeEncodeError) as error:
        raise Refused(BAD_MESSAGE, "bad_message", f"not a message of {SUBPROTOCOL}: {_first(error)}") from error


def _first(error: ValidationError | UnicodeEncodeError) -> str:
    """Return the first error in a message, without the content of the message."""
    if isinstance(error, UnicodeEncodeError):
        return "invalid Unicode"
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else str(found["msg"])


def text_message(kind: str, **fields: Any) -> str:
    """Return a text message from the server; all numbers in the fields must be finite."""
    return json.dumps({"type": kind, **fields}, allow_nan=False)


def picture_message(header: dict[str, Any], pictures: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return a binary message: the length of the header, the header as JSON, then the pictures [H, W, C] in order."""
    text = json.dumps(header, allow_nan=False).encode()
    return b"".join([LENGTH.pack(len(text)), text, *(picture.tobytes() for picture in pictures)])


def split_message(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a binary message into its header and the bytes of its pictures."""
    (length,) = LENGTH.unpack_from(message)
    header: dict[str, Any] = json.loads(message[LENGTH.size : LENGTH.size + length])
    return header, message[LENGTH.size + length :]
